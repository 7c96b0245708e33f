"""画图时显示中文：找一个本机有的中文字体

matplotlib 自带的字体没有汉字，不设置的话，图上的中文会变成一个个方框。
macOS 和 Windows 自带中文字体；Linux 常常没有，那就改用英文标签，图照样能看。

运行：
    python setup/plot_style.py        # 看看本机能用哪个中文字体
    约 1 秒，0.1 GB（2 核 CPU）
"""


def use_chinese_font():
    """让 matplotlib 能画中文；找不到中文字体时返回 False。

    返回:
        bool: 能画中文为 True；为 False 时，画图代码应改用英文标签
    """
    import matplotlib.pyplot as plt  # 导入 matplotlib、扫描字体要半秒多，真要画图时才做
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    # 依次是 macOS、Windows、Linux 上常见的中文字体。
    wanted = ["PingFang SC", "Hiragino Sans GB", "Heiti TC", "Arial Unicode MS", "Microsoft YaHei", "SimHei", "Noto Sans CJK SC", "WenQuanYi Micro Hei"]
    found = [name for name in wanted if name in installed]
    plt.rcParams["font.sans-serif"] = found + plt.rcParams["font.sans-serif"]
    plt.rcParams["axes.unicode_minus"] = False  # 许多中文字体没有 Unicode 减号，负数会变成方框
    return bool(found)


def main():
    """报告本机能不能画中文，不能时说怎么装字体。"""
    if use_chinese_font():
        import matplotlib.pyplot as plt

        print(f"能画中文，用的字体是 {plt.rcParams['font.sans-serif'][0]}")
    else:
        print("没有找到中文字体，图上会用英文标签。Ubuntu / Debian 可以安装：sudo apt install fonts-noto-cjk")
        print("装好后删掉 matplotlib 的字体缓存再试：rm -rf ~/.cache/matplotlib")


if __name__ == "__main__":
    main()
