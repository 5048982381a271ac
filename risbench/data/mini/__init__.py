"""The generated data set mini: scenes, the language that describes them, and the files of both."""
