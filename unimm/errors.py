"""The one base of every refusal that a person can act on."""


class UserError(ValueError):
    """What was given (recipe, file, prompt, image, checkpoint) can't be used. The message is the whole story:
    it names the thing and the remedy, and the command line prints it as one line."""
