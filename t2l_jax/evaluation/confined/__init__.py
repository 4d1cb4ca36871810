"""What `evaluation/sandbox.py` starts: a small Python with nothing but the standard library that runs a test and a
program in two processes, neither of which can reach the other, or anything else, but over two pipes."""
