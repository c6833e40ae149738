# The provider's own client for Python, driven through what our runner relies on. Fails with the first surprise.
# Reads E2B_API_KEY, E2B_API_URL and E2B_SANDBOX_URL itself.
from e2b import CommandExitException, NotFoundException, PtySize, Sandbox, SandboxQuery, TimeoutException


def said(name):
    print(f"ok {name}", flush=True)


def fails(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


sandbox = Sandbox.create("base", timeout=60, metadata={"judge": "python"}, envs={"GLOBAL": "everywhere"})
assert sandbox.is_running()
said("create")

run = sandbox.commands.run('echo out; echo err >&2; echo "$X $GLOBAL"; pwd', envs={"X": "val"}, cwd="/tmp")
assert (run.exit_code, run.stdout, run.stderr) == (0, "out\nval everywhere\n/tmp\n", "err\n"), run
assert fails(CommandExitException, lambda: sandbox.commands.run("exit 7")).exit_code == 7
chunks = []
sandbox.commands.run("echo one; echo two >&2", on_stdout=chunks.append, on_stderr=chunks.append)
assert sorted(chunks) == ["one\n", "two\n"], chunks
said("run")

cat = sandbox.commands.run("cat", background=True, stdin=True, timeout=10)
sandbox.commands.send_stdin(cat.pid, "hello stdin")
sandbox.commands.close_stdin(cat.pid)
assert cat.wait().stdout == "hello stdin"
said("stdin")

fails(TimeoutException, lambda: sandbox.commands.run("sleep 30", timeout=0.5))
said("time out")

long = sandbox.commands.run("sleep 20", background=True, timeout=20)
assert any(one.pid == long.pid for one in sandbox.commands.list())
attached = sandbox.commands.connect(long.pid, timeout=10)
assert sandbox.commands.kill(long.pid) is True
fails(CommandExitException, attached.wait)
assert sandbox.commands.kill(long.pid) is False
said("kill a command")

sandbox.files.write("folder/file.txt", "text")
assert sandbox.files.read("folder/file.txt") == "text"
sandbox.files.write("bytes.bin", bytes([0, 255, 10, 13]))
assert bytes(sandbox.files.read("bytes.bin", format="bytes")) == bytes([0, 255, 10, 13])
assert [entry.name for entry in sandbox.files.list("folder")] == ["file.txt"]
sandbox.files.rename("folder/file.txt", "folder/moved.txt")
assert not sandbox.files.exists("folder/file.txt")
assert sandbox.files.get_info("folder/moved.txt").size == 4
assert sandbox.files.make_dir("folder/inner") is True
sandbox.files.remove("folder")
fails(NotFoundException, lambda: sandbox.files.read("folder/moved.txt"))
said("files")

screen = bytearray()
pty = sandbox.pty.create(PtySize(rows=33, cols=91), timeout=10)
sandbox.pty.resize(pty.pid, PtySize(rows=34, cols=92))
sandbox.pty.send_stdin(pty.pid, b"stty size; exit 0\n")
pty.wait(on_pty=screen.extend)
assert b"34 92" in screen, bytes(screen)
said("pty")

again = Sandbox.connect(sandbox.sandbox_id, timeout=60)
again.set_timeout(90)
assert again.get_info().state.value == "running"
said("connect")

again.pause()
assert Sandbox.get_info(sandbox.sandbox_id).state.value == "paused"
resumed = Sandbox.connect(sandbox.sandbox_id, timeout=60)
assert resumed.commands.run("echo back").stdout == "back\n"
said("pause and resume")

listed = Sandbox.list(query=SandboxQuery(metadata={"judge": "python"}), limit=1).next_items()
assert [one.sandbox_id for one in listed] == [sandbox.sandbox_id], listed
said("list")

assert resumed.kill() is True
assert Sandbox.kill(sandbox.sandbox_id) is False
fails(NotFoundException, lambda: Sandbox.connect(sandbox.sandbox_id))
said("kill")
