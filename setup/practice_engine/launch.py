"""运行一份改过的脚本，让它以为自己还在原来的位置：找数据、写输出都与原脚本一样"""

import sys
import types
from pathlib import Path

real, changed = sys.argv[1:3]
sys.argv = [real, *sys.argv[3:]]
sys.path[0] = str(Path(real).parent)
main = types.ModuleType("__main__")
main.__file__ = real
sys.modules["__main__"] = main
exec(compile(Path(changed).read_text(encoding="utf-8"), changed, "exec"), main.__dict__)
