from lmtrain.cli.app import app
from lmtrain.runtime.group import leave
from lmtrain.runtime.processes import is_launched

if __name__ == "__main__":
    try:
        app(prog_name="lmtrain")
    except SystemExit as end:
        if is_launched():
            leave(end.code)
        raise
