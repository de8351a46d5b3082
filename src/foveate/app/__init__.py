"""The web page: ask a model about a picture with several methods at once, and see what each keeps. Needs gradio."""
