"""The route of Twilio Media Streams, `/twilio`, and the check of who calls. Called by `server.app`."""

from aiohttp import web

from pplex.server.options import TWILIO_AUTH_TOKEN
from pplex.server.request import RequestError
from pplex.server.routes import RouteContext, Routes
from pplex.server.twilio_protocol import TwilioProtocol
from pplex.server.twilio_signature import HEADER, is_signed
from pplex.server.twilio_start import TwilioTerms

PATH = "/twilio"


class TwilioRoutes(Routes):
    """See `Routes`. Twilio sends the settings over the open socket, and has no header for a token."""

    is_openai = False

    def __init__(self, context: RouteContext):
        self._access, self._calls, self._options = context.access, context.calls, context.options
        self._bundle = context.bundle

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_get(PATH, self._call)

    async def _call(self, request: web.Request) -> web.StreamResponse:
        self._access.check_origin(request)
        is_known = self._is_known(request)
        terms = TwilioTerms(
            self._bundle.voices, self._bundle.config.takes_prompt, None if is_known else self._access.is_token
        )
        return await self._calls.converse_after_start(request, TwilioProtocol(terms))

    def _is_known(self, request: web.Request) -> bool:
        """Whether the request shows who asks. If not, the start message must do so.

        Raises RequestError for a wrong signature, and for none where only a signature counts.
        """
        signature, auth_token = request.headers.get(HEADER), self._options.twilio_auth_token
        if auth_token is not None and signature is not None:
            self._check_signature(signature, self._addresses(request), auth_token)
            return True
        if self._access.asks_for_token:
            return self._access.has_token(request)
        raise RequestError(403, f"This request has no {HEADER}, so it does not come from Twilio.")

    def _check_signature(self, signature: str, addresses: list[str], auth_token: str) -> None:
        if is_signed(signature, addresses, auth_token):
            return
        signed = " or ".join(ascii(address)[1:-1][:200] for address in addresses)
        raise RequestError(
            403,
            f"{HEADER} is not the signature of {signed}. Start the server with the address in your TwiML, "
            f"--public-url, and with the primary auth token of your Twilio account, {TWILIO_AUTH_TOKEN}.",
        )

    def _addresses(self, request: web.Request) -> list[str]:
        """Where Twilio could have sent this request."""
        if self._options.public_url is not None:
            return [f"{self._options.public_url}{PATH}"]
        return [f"wss://{host}{PATH}" for host in self._access.own_hosts(request)]
