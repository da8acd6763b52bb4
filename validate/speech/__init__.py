"""The user's speech, voice activity, and turn-taking: called by the conversation section and `validate.validation`."""
