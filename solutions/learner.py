"""The process of a submission: runs its cells, and calls its functions when the judge asks for it.

    python learner.py FD SETTINGS.json

Everything here runs beside the learner's code, which may change it: nothing that it says is believed (`judging.py`).
It knows no hidden test and no right value. Limits and walls are put around it from outside (`walls.py`).
"""
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))


class Outputs:
    """What a cell shows, as nbformat has it, up to a limit."""

    def __init__(self, notes, most: int):
        self.notes, self.most = notes, most
        self.fresh()

    def fresh(self) -> None:
        self.found, self.printed, self.shown = [], 0, 0

    def text(self, name: str, text: str) -> None:
        room = self.most - self.printed
        self.printed += len(text)
        if room <= 0:
            return
        if len(text) > room:
            self.notes(f"printed more than {self.most // 1000} kB; the rest was cut")
            text = text[:room] + "\n… cut by the grader\n"
        if self.found and self.found[-1].get("name") == name:
            self.found[-1]["text"] += text
        else:
            self.found.append({"output_type": "stream", "name": name, "text": text})

    def rich(self, kind: str, data: dict, metadata: dict | None, **more) -> None:
        self.shown += len(str(data))
        if self.shown > 20 * self.most:  # room for figures
            self.notes("showed more than the limit; the rest was cut")
            return
        self.found.append({"output_type": kind, "data": json.loads(json.dumps(data, default=str)),
                           "metadata": json.loads(json.dumps(metadata or {}, default=str)), **more})

    def error(self, name: str, text: str, lines: list[str]) -> None:
        self.found.append({"output_type": "error", "ename": name[:200], "evalue": text[:2000],
                           "traceback": [line[:20_000] for line in lines[:200]]})


class Stream:
    """sys.stdout or sys.stderr."""
    encoding, errors, closed = "utf-8", "replace", False

    def __init__(self, outputs: Outputs, name: str):
        self.outputs, self.name = outputs, name

    def write(self, text) -> int:
        self.outputs.text(self.name, str(text))
        return len(text)

    def writelines(self, lines) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1  # leads to /dev/null


def shell_with(outputs: Outputs):
    """IPython's shell, without a terminal and a kernel, whose outputs go into `outputs`."""
    from IPython.core.displayhook import DisplayHook
    from IPython.core.displaypub import DisplayPublisher
    from IPython.core.interactiveshell import InteractiveShell

    class Publisher(DisplayPublisher):
        def publish(self, data, metadata=None, **_):
            outputs.rich("display_data", data, metadata)

        def clear_output(self, wait=False):
            pass

    class Hook(DisplayHook):
        def write_output_prompt(self):
            pass

        def finish_displayhook(self):
            pass

        def write_format_data(self, format_dict, md_dict=None):
            outputs.rich("execute_result", format_dict, md_dict, execution_count=self.shell.execution_count)

    class Shell(InteractiveShell):
        display_pub_class, displayhook_class = Publisher, Hook

        def _showtraceback(self, etype, evalue, stb):
            outputs.error(getattr(etype, "__name__", str(etype)), str(evalue), [str(line) for line in stb])

        def enable_gui(self, gui=None):
            pass

        def ask_exit(self):  # exit() as sys.exit()
            raise SystemExit("exit() was called")

    from traitlets.config import Config
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "Linux"
    config.InteractiveShell.xmode = "Context"
    return Shell.instance(config=config)


def main() -> None:
    fd, path = int(sys.argv[1]), sys.argv[2]
    with open(path, encoding="utf-8") as file:
        settings = json.load(file)
    os.set_inheritable(fd, False)
    os.chdir(settings["work"])
    import torch
    from packing import Gone
    from wire import Wire, unchanged
    torch.set_num_threads(1)
    wire = Wire(os.fdopen(os.dup(fd), "rb"), os.fdopen(fd, "wb"))
    notes = Notes(wire)
    outputs = Outputs(notes, settings["characters"])
    shell = shell_with(outputs)
    sys.stdout, sys.stderr = Stream(outputs, "stdout"), Stream(outputs, "stderr")
    namespace = shell.user_ns
    wire.names, wire.around = namespace, lambda names: unchanged(names, namespace)
    import guard
    put_back = guard.start(shell, notes, settings)

    def asked(message: dict) -> None:
        if message.get("do") == "cell":
            notes.cell = message["name"]
            outputs.fresh()
            shell.run_cell(message["source"], store_history=True)
            put_back()
            hide_globals(namespace, notes)
            wire.send({"done": "cell", "outputs": outputs.found})
        elif message.get("do") == "check":  # begins, or has ended
            notes.cell = message["name"]
            put_back()
            if not message["begins"]:
                wire.send({"done": "check", "outputs": outputs.found})
                wire.forget()
            outputs.fresh()
        else:
            raise Gone("an unknown message")

    wire.other = asked
    wire.send({"done": "start"})
    try:
        while True:
            wire.serve(*wire.receive())
    except Gone:
        os._exit(0)


def hide_globals(namespace: dict, notes) -> None:
    import builtins
    for name in ("zip", "all", "any", "abs", "sum", "len", "isinstance", "enumerate", "print", "range"):
        if name in namespace and namespace[name] is not getattr(builtins, name):
            notes(f"has a global name of its own for the built-in {name!r}")


class Notes:
    """Sends each note to the judge at once, with the id of the cell that runs; what is sent cannot be called back."""

    def __init__(self, wire):
        self.wire, self.cell, self.seen = wire, "", set()

    def __call__(self, text: str) -> None:
        if (self.cell, text) not in self.seen and len(self.seen) < 30:
            self.seen.add((self.cell, text))
            self.wire.send({"note": [self.cell, text]})


if __name__ == "__main__":
    main()
