"""命令行说中文：argparse 的帮助和报错，换成一句中文

argparse 是标准库里解析命令行参数的工具。它的提示是英文的，而且出错时先打印一大段用法；
这里只改"怎么说"，不改"怎么解析"。setup/ 里的工具都用它；章节脚本用普通的 argparse。

运行：
    python setup/chinese_cli.py --help        # 看中文帮助
    python setup/chinese_cli.py --heads 三    # 看中文报错（退出码 2）
    约 1 秒，0.1 GB（2 核 CPU）
"""

import argparse
import re
import sys


class ChineseParser(argparse.ArgumentParser):
    """argparse 的中文版：帮助是中文，用错参数时只说一句话，退出码 2。

    参数:
        description (str): 脚本是做什么的，显示在帮助的开头

    示例:
        >>> ChineseParser("演示").parse_args(["--heads", "2"])
        Traceback (most recent call last):
        SystemExit: 2
    """

    def __init__(self, description):
        # 中文 Windows 的终端印不出 ✓ 这类字符：改印它的名字，而不是报错退出。
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="namereplace")
        # allow_abbrev=False：--head 不会被悄悄当成 --heads，写错就是写错。
        super().__init__(description=description, add_help=False, allow_abbrev=False)
        self._positionals.title, self._optionals.title = "参数", "选项"
        self.add_argument("-h", "--help", action="help", help="显示这份说明")

    def format_help(self):
        """返回帮助全文，把 argparse 写死的 usage 换成中文。

        返回:
            str: 帮助全文
        """
        return super().format_help().replace("usage: ", "用法：", 1)

    def error(self, message):
        """把 argparse 的英文报错译成一句中文，打印到 stderr，以退出码 2 结束。

        参数:
            message (str): argparse 给出的英文；脚本自己给出的中文会原样打印

        异常:
            SystemExit: 总是，退出码 2（命令行约定：2 表示用法不对）
        """
        for english, chinese in [
            (r"unrecognized arguments: (.+)", r"不认识的参数 \1"),
            (r"the following arguments are required: (.+)", r"缺少参数 \1"),
            (r"argument (\S+): expected .+", r"\1 后面少了一个值"),
            (r"argument (\S+): invalid choice: (.+) \(choose from (.+)\)", r"\1 不能是 \2，只能是 \3 之一"),
            (r"argument (\S+): invalid int value: (.+)", r"\1 要的是整数，不是 \2"),
            (r"argument (\S+): invalid float value: (.+)", r"\1 要的是数字，不是 \2"),
            (r"argument (\S+): (.+)", r"\1：\2"),
        ]:
            message, found = re.subn(f"^{english}$", chinese, message, flags=re.DOTALL)
            if found:
                break
        self.exit(2, f"出错了：{message}（用 --help 看用法）\n")


def main():
    """演示：带一个整数参数的命令行。"""
    parser = ChineseParser("演示：中文的命令行帮助和报错")
    parser.add_argument("--heads", type=int, default=2, help="随便一个整数（默认：2）")
    print("读到的参数：", parser.parse_args())


if __name__ == "__main__":
    main()
