#!/usr/bin/env bash
# 一条命令：建好环境，然后运行脚本。
#   bash setup/run.sh                                  带你走一圈：设备检查 → GPT 生成 → 训练一个小模型
#   bash setup/run.sh ch04/main/gpt.py --prompt 你好   运行某个脚本，后面是它的参数
# 兼容 macOS 自带的 bash 3.2。

set -euo pipefail
here="$PWD"
root="$(cd "$(dirname "$0")/.." && pwd)"

# Python 一律用 UTF-8（中文 Windows 默认是 GBK）。
export PYTHONUTF8=1
# 只对 Linux 的 glibc 有用：留住释放掉的大块内存，不必每个训练步都还给系统再要回来，训练快两三成；数字不变。
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483647 MALLOC_TOP_PAD_=67108864

say() { printf '%s\n' "$*" >&2; }

# ① 找一个够新的 Python。
find_python() {
    for name in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.10 python; do
        if [ -n "$name" ] && command -v "$name" >/dev/null 2>&1 &&
            "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
            printf '%s\n' "$name"
            return 0
        fi
    done
    return 1
}

# ② 建虚拟环境（virtual environment）：包都装在项目的 .venv 里，不影响系统。
venv="$root/.venv"
python="$venv/bin/python"
[ -f "$venv/Scripts/python.exe" ] && python="$venv/Scripts/python.exe" # Windows 的 Git Bash
if ! "$python" -c 'import sys' >/dev/null 2>&1; then
    if ! system_python="$(find_python)"; then
        say "需要 Python 3.10 或更新的版本，没有找到：请先安装（macOS 可用 brew install python@3.12，Ubuntu 可用 sudo apt install python3 python3-venv），或用 PYTHON=路径 指定。"
        exit 2
    fi
    if ! "$system_python" -m venv "$venv"; then
        rm -rf "$venv"
        say "建不了虚拟环境：Ubuntu / Debian 请先 sudo apt install python3-venv，再运行一次。"
        exit 2
    fi
    [ -f "$venv/Scripts/python.exe" ] && python="$venv/Scripts/python.exe"
fi

# ③ 装依赖。requirements 文件没变过就不再装：第二次运行立刻开始。
install() { # 参数：标记名，之后是 pip install 的参数
    mark="$venv/.installed-$1"
    shift
    wanted="$(cat "$root/requirements.txt" "$root"/setup/requirements-*.txt; printf '%s ' "$@")"
    [ -f "$mark" ] && [ "$(cat "$mark")" = "$wanted" ] && return 0
    say "正在安装依赖（第一次要几分钟）：pip install $*"
    if ! "$python" -m pip install --quiet --disable-pip-version-check "$@"; then
        say "安装没有成功。网络慢或连不上时：换一个国内的 PyPI 镜像，设好环境变量 PIP_INDEX_URL=镜像地址，再运行一次；已下载的部分不会重下。"
        exit 2
    fi
    printf '%s' "$wanted" >"$mark"
}
install main -r "$root/requirements.txt"
"$python" "$root/setup/prepare.py" >/dev/null # GPT-2 的词表，放好之后不再联网

# test.sh 会 source 本文件，只要前面的环境。
if [ "${BASH_SOURCE[0]}" != "$0" ]; then
    return 0
fi

# ④ 运行。
if [ $# -gt 0 ]; then
    script="$1"
    shift
    [ -f "$script" ] || script="$root/$script" # 在别的文件夹里也可以写 ch04/main/gpt.py
    if [ ! -f "$script" ]; then
        say "找不到脚本 $script，请检查路径，例如：bash setup/run.sh ch04/main/gpt.py"
        exit 2
    fi
    exec "$python" "$script" "$@"
fi

cd "$root"
printf '━━ 1/3 设备检查 ━━\n\n'
"$python" setup/device_check.py
printf '\n━━ 2/3 没训练过的 GPT-2：163,009,536 个随机数说的话 ━━\n\n'
"$python" ch04/main/gpt.py
printf '\n━━ 3/3 训练一个小 GPT：看它从胡话学到成句 ━━\n\n'
"$python" ch05/main/gpt_train.py
printf '\n走完了。接下来：打开 README.md 看学习路线，或让刚训练好的模型写一段：\n  bash setup/run.sh ch05/main/gpt_generate.py --prompt "I had always"\n'
