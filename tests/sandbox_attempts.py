"""Programs that try to pass without a right answer (CHEATS), and functions that do harm (HARM), by name.

A function of HARM is right if the harm succeeds, so each of them passes where nothing stops it. What they do is
bounded and harmless: signals are number 0 or SIGCONT, bombs stop after a step or two, and what would change the machine
only asks whether there is such a system call (errno 38).
"""

import re


def _sections(text: str) -> dict[str, str]:
    """The source below each line `### name`."""
    return dict(re.findall(r"^### (.*)\n((?:(?!### ).*\n)*)", text, re.MULTILINE))


BEFORE = """
import ctypes, os, signal, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def write_everywhere(line):
    for number in range(64):
        try:
            os.write(number, line + b"\\n")
        except OSError:
            pass
"""

CHEATS = _sections(r"""
### word from the command line
w = open('/proc/self/cmdline').read().split('\0')[-2]
open('note', 'w').write(w)
os._exit(0)
### chmod of its folder
os.chmod('.', 0)
### exit
sys.exit(0)
### exit with the status of a pass
os._exit(42)
### exit within the call
def add(a, b): os._exit(42)
### exit at the end
import atexit
atexit.register(os._exit, 42)
def add(a, b): raise SystemExit(42)
### words for everyone
write_everywhere(b'passed 42 true')
### answer before the question
write_everywhere(b'["return", {"tuple": [{"dict": [3, "add", {"mine": 1}]}, '
    b'{"list": [0, "", {"list": [1]}]}, {"dict": [2]}]}]')
write_everywhere(b'["return", {"tuple": [6, {"list": [0, 2, 3]}, {"dict": [1]}]}]')
### other builtins for the test
write_everywhere(b'["return", {"tuple": [{"dict": [3, "add", {"mine": 1}, "__builtins__", '
    b'{"dict": [4, "AssertionError", {"builtin": "int"}, "abs", {"builtin": "int"}]}, "abs", {"builtin": "int"}]}, '
    b'{"list": [0, "", {"list": [1]}]}, {"dict": [2]}]}]')
write_everywhere(b'["return", {"tuple": [-9, {"list": [0, 2, 3]}, {"dict": [1]}]}]')
def add(a, b): return -9
### replies of nonsense
write_everywhere(b'[[[[')
### an empty reply
write_everywhere(b'[]')
### a call into the test
write_everywhere(b'["call", {"tuple": [{"builtin": "exit"}, {"list": [0, 42]}, {"dict": [1]}]}]')
### equal to everything
class Equal:
    def __eq__(self, other): return True
def add(a, b): return Equal()
### a number equal to everything
class Equal(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def add(a, b): return Equal(6)
### no assertions
import builtins
builtins.AssertionError = type('AssertionError', (), {})
builtins.print = builtins.isinstance = lambda *_: True
sys.modules['unittest'] = sys.modules['json'] = None
def add(a, b): return 6
### a check of its own
import __main__
__main__.check = lambda f: None
def add(a, b): return 6
### the test in memory
def add(a, b):
    import gc
    frame, seen = sys._getframe(), repr(gc.get_objects())
    while frame:
        seen += repr(frame.f_locals) + repr(frame.f_globals)
        frame = frame.f_back
    return 5 if 'assert' + chr(32) + 'candidate' in seen else 6
### a large reply
def add(a, b): return 'x' * (1 << 25)
### a deep reply
def add(a, b):
    x = []
    for _ in range(10**5): x = [x]
    return x
### no end of recursion
sys.setrecursionlimit(10**9)
def add(a, b): return [*map(add, [a], [b])]
### a crash
def add(a, b): ctypes.string_at(0)
### not a function
add = 5
### the end of an iteration
def add(a, b): raise StopIteration
""")

HARM = _sections(r"""
### another folder in place of its own
os.rename(os.getcwd(), os.getcwd() + '-moved')
### a file elsewhere
open(f'{OUTSIDE}/made', 'w').write('x')
### a change of a user's file
open(f'{OUTSIDE}/mine', 'a').write('x')
### a file in shared memory
open('/dev/shm/t2l-made', 'w').write('x')
### chmod of a user's file
os.chmod(f'{OUTSIDE}/mine', 0o600)
### a user's secret
assert open(f'{OUTSIDE}/secret').read() == 'secret'
### a list of processes
assert len([name for name in os.listdir('/proc') if name.isdigit()]) > 1
### fork
if not os.fork(): os._exit(0)
### a process that outlives it
if not os.fork():
    os.setsid()
    if not os.fork():
        time.sleep(1)
        open(f'{OUTSIDE}/made', 'w')
    os._exit(0)
### a program
import subprocess
subprocess.run(['/bin/true'], check=True)
### exec
libc.execve(b'/no/program', None, None)
assert ctypes.get_errno() != 38
### a process by the call's number
assert os.uname().machine == 'x86_64' and libc.syscall(56, 17, 0, 0, 0, 0) >= 0
### threads without end
import threading
for _ in range(2000): threading.Thread(target=time.sleep, args=(9,), daemon=True).start()
### memory
x = bytearray(3 << 30)
### memory in pieces
x = [bytearray(50 << 20) for _ in range(30)]
### memory in shared pieces
import mmap
x = [mmap.mmap(-1, 100 << 20) for _ in range(20)]
### memory in files
os.memfd_create('x')
### a large file
open('large', 'wb').write(bytes(20 << 20))
### many files
for n in range(20): open(str(n), 'wb').write(bytes(1 << 20))
### many empty files
for n in range(9000): open(str(n), 'wb').close()
### a signal to the parent
os.kill(os.getppid(), 0)
### a signal to all
os.kill(-1, 0)
### a signal to its group
os.killpg(0, 0)
### a signal to itself
os.kill(os.getpid(), signal.SIGCONT)
### a signal by way of a pipe
import fcntl
fcntl.fcntl(os.pipe()[0], 8, os.getppid())
### tracing
libc.ptrace(16, 1 << 30, 0, 0)
assert ctypes.get_errno() != 38
### the parent's memory by call
assert libc.process_vm_readv(os.getppid() or 1, 0, 0, 0, 0, 0) == 0
### the parent's memory as a file
open(f'/proc/{os.getppid() or 1}/mem', 'rb')
### our memory
open(f'/proc/{PID}/mem', 'rb')
### our open files
open(f'/proc/{PID}/fd/0', 'rb')
### limits of another
import resource
resource.prlimit(PID, resource.RLIMIT_NOFILE)
### limits of its own
import resource
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
### a namespace
assert libc.unshare(0x10000000) == 0
### a mount
libc.mount(b'none', b'/no/folder', b'tmpfs', 0, None)
assert ctypes.get_errno() != 38
### a system call of another kind
assert libc.syscall(425, 1, bytes(200)) >= 0  # io_uring_setup
### TCP
socket.create_connection(('127.0.0.1', PORT))
### a socket by call
assert libc.socket(2, 1, 0) >= 0
### a Unix socket
socket.socket(socket.AF_UNIX).connect(f'{OUTSIDE}/socket')
### an abstract Unix socket
socket.socket(socket.AF_UNIX).connect(f'\0t2l-{PID}')
### a datagram
socket.socketpair(type=socket.SOCK_DGRAM)[0].sendto(b'x', f'{OUTSIDE}/datagrams')
### our folder
assert open(HERE).read()
### our variables
assert 'T2L_SECRET' in os.environ
""")
# What nothing hides at the level "filter".
READS = {"a user's secret", "a list of processes", "our folder", "our memory", "our open files"}
