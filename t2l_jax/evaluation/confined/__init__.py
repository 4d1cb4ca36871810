"""What `evaluation/sandbox.py` starts: a Python that runs a test and a program in two processes.

Neither can reach the other, or anything else, but over two pipes. Only the standard library is imported, as the
start is most of the time that a program takes.
"""
