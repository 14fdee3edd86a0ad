"""What passes ask of a program: who may touch what memory, and when a value is used last."""
