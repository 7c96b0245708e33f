"""「这个数字对吗？」　每个脚本结尾都有的自查

学的人最常问的一句话是："我跑出来这个数，正常吗？"所以每个脚本都在结尾自己回答：
得到了什么、应该是什么、对不上时通常错在哪里。

运行：
    python setup/self_check.py        # 看看 ✓ 和 ✗ 各长什么样
    约 1 秒，0.1 GB（2 核 CPU）
"""

import sys


def safe_console():
    """让不支持 UTF-8 的终端也能运行本项目的脚本：印不出的字符改印它的名字，而不是报错退出。

    Windows 上把输出重定向到文件时，编码常常是 GBK，里面没有 ✓，也没有模型偶尔吐出的乱码字符。
    换成 ? 就分不清 ✓ 和 ✗ 了，所以印名字：\\N{CHECK MARK} 和 \\N{BALLOT X}。
    Jupyter 的输出对象没有 reconfigure，它本来就是 UTF-8，跳过即可。
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="namereplace")


def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。

    参数:
        claim (str): 应当成立的事，例如"每行之和为 1"
        ok (bool): 这次运行里它成立吗
        hint (str): 不成立时，最常见的原因

    返回:
        bool: 原样返回 ok

    示例:
        >>> confirm("1 + 1 = 2", 1 + 1 == 2, "数学不存在了")
          ✓ 1 + 1 = 2
        True
    """
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


def main():
    """演示两种结果：成立的打 ✓，不成立的打 ✗ 并给出原因。"""
    safe_console()
    print("这个数字对吗？（演示）")
    confirm("softmax 之后每行之和为 1", abs(sum([0.2, 0.3, 0.5]) - 1) < 1e-9, "softmax 的 dim 写错了")
    confirm("初始损失约为 ln 50257 = 10.82（这里故意给了 3.0）", abs(3.0 - 10.82) < 0.5, "拿训练过的模型当成了新模型")


if __name__ == "__main__":
    main()
