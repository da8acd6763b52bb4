"""The user's speech, voice activity, and turn-taking."""
