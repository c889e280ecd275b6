# Runs a completion and a test, and tells on stdout that both ended well by writing the secret that
# stdin begins with. The tested code runs in this interpreter, so that the secret must be out of its
# reach: it is only held by an iterator that C code consumes in a thread, with no Python frame or
# variable that leads there.
import _thread
import collections
import functools
import os
import signal
import sys
import time
import types


def watch(event, arguments):
    # Ways to objects that no frame leads to. Names could be replaced by the tested code: literals
    # only.
    if (
        event in {"gc.get_objects", "gc.get_referrers", "gc.get_referents", "sys._current_frames"}
        or event in {"sys._current_exceptions", "sys.settrace", "sys.setprofile", "code.__new__"}
        or event[:7] == "ctypes."
        or event == "import"
        and ("ctypes" in arguments[0] or "_test" in arguments[0] or "ctypes" in (arguments[1] or ""))
    ):
        raise RuntimeError(event + " is not there for tested code")


def read_all(file):
    return b"".join(iter(lambda: os.read(file, 1 << 16), b""))


def steps(channel):
    secret, *sources = read_all(0).split(b"\0")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    module = types.ModuleType("completion")
    sys.modules["completion"] = sys.modules["__main__"] = module
    names = ("<completion>", "<test>")
    for name, source in zip(names, sources):
        lines[name] = source.decode().split("\n")
    codes = [compile("\n".join(lines[name]), name, "exec", 0, True) for name in names]
    return map(
        functools.partial.__call__,
        [functools.partial(begun.release)]
        + [functools.partial(exec, code, module.__dict__) for code in codes]
        + [functools.partial(os.write, channel, secret), functools.partial(os._exit, 0)],
    )


def describe(error):
    kind = type(error.exc_value).__name__
    text = kind + ": " + str(error.exc_value) if str(error.exc_value) else kind
    at = ("", 0)
    trace = error.exc_traceback
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name == "<test>" or name == "<completion>" and at[0] != "<test>":
            at = (name, trace.tb_lineno)
        trace = trace.tb_next
    if at[1]:
        text += " at `" + lines[at[0]][at[1] - 1].strip() + "`"
    reasons.append(text)


def fail(channel):
    text = (reasons or ["the code ended the program"])[0]
    os.write(channel, ("failed " + text[:300]).encode("utf-8", "replace"))
    os._exit(1)


lines = {}
reasons = []
begun = _thread.allocate_lock()
begun.acquire()
channel = os.dup(1)
os.dup2(2, 1)
signal.signal(signal.SIGINT, signal.SIG_DFL)
sys.unraisablehook = describe
sys.addaudithook(watch)
try:
    _thread.start_new_thread(collections.deque(maxlen=0).extend, (steps(channel),))
except BaseException as error:
    reasons.append(type(error).__name__ + ": " + str(error))
    fail(channel)
begun.acquire()
while _thread._count():
    time.sleep(0.005)
fail(channel)
