"""The route of `/api/chat`, whose settings are in the query. Called by `server.app`."""

from aiohttp import web

from pplex.server.chat_messages import PATH
from pplex.server.chat_protocol import ChatProtocol
from pplex.server.chat_request import ChatRequest, parse_query
from pplex.server.conversation import ServerConversation
from pplex.server.routes import RouteContext, Routes


class ChatRoutes(Routes):
    """See `Routes`. Everything is checked before the upgrade."""

    is_openai = False

    def __init__(self, context: RouteContext):
        self._access, self._reception, self._calls = context.access, context.reception, context.calls
        self._voices, self._takes_prompt = context.bundle.voices, context.bundle.config.takes_prompt

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_get(PATH, self._chat)
        router.add_post(PATH, self._would_chat)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        chat, resumed = self._checked(request)
        return await self._calls.converse(request, chat, resumed, ChatProtocol(chat))

    async def _would_chat(self, request: web.Request) -> web.StreamResponse:
        """Answer whether a conversation would begin, because a browser hides from a page why a WebSocket was refused."""
        self._checked(request)
        return web.Response(status=204)

    def _checked(self, request: web.Request) -> tuple[ChatRequest, ServerConversation | None]:
        """The request, and the conversation that it resumes, if any. Raises RequestError if it is refused."""
        self._access.check_origin(request)
        self._access.check_token(request)
        chat = parse_query(request.query.items(), self._voices, self._takes_prompt)
        if chat.control or chat.greeting is not None or chat.snapshot:
            self._access.check_control(request)
        if chat.resume:
            return chat, self._reception.resumable(chat.resume)
        self._reception.check(chat)
        return chat, None
