"""第 3 章 · 3.5 节　因果注意力：不许偷看后面的词

读完你应该能回答：
    1. 语言模型为什么必须遮住后面的词？不遮的话，训练损失会怎样骗你？
    2. softmax 之后乘 0 再归一化，与 softmax 之前填 -inf，为什么结果一样？为什么大家都用后一种？
    3. dropout 丢掉一部分之后，为什么要把剩下的放大 1/(1-p) 倍？掩码为什么要登记成 buffer？

运行：
    python ch03/main/example_03_causal_attention.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 2 秒，0.3 GB（2 核 CPU）

形状记号（全书统一）：
    b 批大小　　t 序列长度（词元数）　　d 嵌入维度，进出不同时分别写作 d_in、d_out
"""

import torch
import torch.nn as nn


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


# region 沿用 ch03/main/example_02_trainable_attention.py: SelfAttention_v2
class SelfAttention_v2(nn.Module):
    """一个头的自注意力，权重矩阵换成 nn.Linear。（详解见 ch03/main/example_02_trainable_attention.py）"""

    def __init__(self, d_in, d_out, qkv_bias=False):
        super().__init__()
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)

    def forward(self, x):
        queries = self.W_query(x)  # (t, d_out)
        keys = self.W_key(x)  # (t, d_out)
        values = self.W_value(x)  # (t, d_out)
        scores = queries @ keys.T  # (t, t)
        weights = torch.softmax(scores / keys.shape[-1] ** 0.5, dim=-1)  # (t, t)
        return weights @ values  # (t, d_out)


# endregion

# %% 3.5　输入：与 3.3 节相同的 6 个词
inputs = torch.tensor(
    [
        [0.43, 0.15, 0.89],  # Your
        [0.55, 0.87, 0.66],  # journey
        [0.57, 0.85, 0.64],  # starts
        [0.22, 0.58, 0.33],  # with
        [0.77, 0.25, 0.10],  # one
        [0.05, 0.80, 0.55],  # step
    ]
)  # (t, d_in) = (6, 3)
d_in, d_out = 3, 2

# %% 3.5.1　先算出没有遮挡的注意力权重，用的是 3.4.2 节的那个 SelfAttention_v2
# 语言模型的任务是"看着前面的词，猜下一个词"。训练时整句话一起送进去，如果 journey 能看见后面的 starts，
# 它就不用猜了，照抄就行：训练损失漂亮得惊人，生成时却一塌糊涂，因为那时后面根本还没有词。
torch.manual_seed(789)
sa_v2 = SelfAttention_v2(d_in, d_out)
queries = sa_v2.W_query(inputs)  # (t, d_out)
keys = sa_v2.W_key(inputs)  # (t, d_out)
scores = queries @ keys.T  # (t, t)
weights = torch.softmax(scores / keys.shape[-1] ** 0.5, dim=-1)  # (t, t)
print("【3.5.1】没有遮挡的注意力权重 (t, t)")
print(weights)

# %% 办法一：softmax 之后，把右上角乘成 0，再重新归一化
# tril（lower triangle，下三角）：第 i 行只有前 i 个是 1，即第 i 个词只能看自己和前面的词。
context_length = scores.shape[0]
mask_simple = torch.tril(torch.ones(context_length, context_length))
print("\n下三角掩码")
print(mask_simple)

masked_simple = weights * mask_simple  # (t, t)
print("右上角乘成 0 之后，每行之和不再是 1")
print(masked_simple)

# 分母里只剩没被遮住的词，被遮住的词就一点影响都没有了：结果与"从一开始就没有后面的词"完全相同。
row_sums = masked_simple.sum(dim=-1, keepdim=True)  # (t, 1)　keepdim 留住最后一维，下面才能按行广播
masked_simple_norm = masked_simple / row_sums  # (t, t)
print("每行除以自己的和")
print(masked_simple_norm)

# %% 办法二：softmax 之前，把右上角填成 -inf（大家都用这一种）
# e^(-inf) = 0，被遮住的位置权重自动是 0，其余的自动加起来等于 1：一步到位，不必归一化两次，也不会除以 0。
# triu（upper triangle，上三角），diagonal=1：从主对角线往右上移一格开始，词仍然能看到自己。
# 写成 diagonal=0 的话，第一行全是 -inf，softmax 是 0 / 0，得到一整行 nan。
mask = torch.triu(torch.ones(context_length, context_length), diagonal=1)
masked = scores.masked_fill(mask.bool(), -torch.inf)  # (t, t)
print("\n填成 -inf 之后的分数 (t, t)")
print(masked)

weights = torch.softmax(masked / keys.shape[-1] ** 0.5, dim=-1)  # (t, t)
print("再 softmax 的权重：与办法一的相同吗？")
print(weights)

# %% 3.5.2　dropout：训练时随机丢掉一部分权重，免得模型死盯着某几个词
# 随机丢弃（dropout）只在训练时用，目的是防止过拟合。p = 0.5 是为了看得清楚，GPT-2 用 0.1。
torch.manual_seed(123)
dropout = nn.Dropout(0.5)
example = torch.ones(6, 6)
dropped_example = dropout(example)
print("\n【3.5.2】全是 1 的矩阵，丢掉一半")
print(dropped_example)

# 留下的都变成了 2：平均只剩 1 - p 的数，就把它们放大 1/(1-p) 倍，总和的期望才不变（注意不是 1/p，p = 0.5 时碰巧相等）。
# 这样评估时直接关掉 dropout 就行，后面的层收到的数大小一样，不用另外调整。
large_example = nn.Dropout(0.1)(torch.ones(1000, 1000))
print(f"换成 p = 0.1、一百万个 1：留下的都变成 {large_example.max():.4f}（1 / 0.9），平均 {large_example.mean():.3f}")

# 同一个种子，dropout 丢掉哪几个，可能随操作系统和 PyTorch 版本而变（PyTorch 的已知问题，pytorch/pytorch#121595）。
# 所以与书上不同不一定是你错了；要查的是"非 0 的是不是都放大了同样的倍数"。
book = ["220220", "000202", "222202", "022002", "020202", "022220"]  # 书上打印的 6 行
same = ["".join(f"{number:.0f}" for number in row) for row in dropped_example.tolist()] == book
print("丢掉的位置与书上", "相同" if same else "不同：这台机器的系统或 PyTorch 版本与作者的不一样")

# %% 用在注意力权重上
# 掩码遮住的本来就是 0，放大后还是 0；某一行也可能碰巧全被丢掉，那个词这一次就什么也没收到，训练时无妨。
torch.manual_seed(123)
dropped_weights = dropout(weights)
print("\n因果注意力权重，丢掉一半")
print(dropped_weights)

# %% 3.5.3　批：一次处理几句话
# 训练时总是一批句子一起算。这里把同一句话放两遍，两份输出应当一样。
batch = torch.stack((inputs, inputs), dim=0)  # (b, t, d_in) = (2, 6, 3)
print(f"\n【3.5.3】批　{tuple(batch.shape)}　(b, t, d_in)")


# %% 装进一个类：CausalAttention
class CausalAttention(nn.Module):
    """一个头的因果自注意力：SelfAttention_v2 加上批、因果掩码和 dropout。

    参数:
        d_in (int): 输入嵌入维度
        d_out (int): 查询、键、值和输出的维度
        context_length (int): 支持的最长序列；掩码按它一次建好，前向时再截取
        dropout (float): 注意力权重的丢弃概率 p，0.0 表示不丢弃
        qkv_bias (bool): 三个投影是否带偏置

    形状:
        输入 (b, t, d_in) → 输出 (b, t, d_out)，其中 t ≤ context_length

    出处: 原书 3.5.3 节
    """

    def __init__(self, d_in, d_out, context_length, dropout, qkv_bias=False):
        super().__init__()
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.dropout = nn.Dropout(dropout)
        # 掩码不参与训练，所以不是参数；写成普通属性 self.mask = … 又不会跟着 model.to("mps") 搬到 GPU，
        # 前向时就报"两个张量不在同一个设备上"。buffer 正好：不训练，但跟着模型搬到别的设备，也跟着存盘。
        # 用 bool 而不是书里的浮点数：省下每次前向的 .bool() 转换；读入书里存的浮点掩码时会自动转换。
        self.register_buffer("mask", torch.triu(torch.ones(context_length, context_length, dtype=torch.bool), diagonal=1))

    def forward(self, x):
        """前向传播。

        参数:
            x (Tensor): 输入嵌入，(b, t, d_in)

        返回:
            Tensor: 上下文向量，(b, t, d_out)
        """
        b, t, _ = x.shape  # t 书里写作 num_tokens

        # ① 投影。nn.Linear 只动最后一维，前面多一个批维度也照常工作。
        queries = self.W_query(x)  # (b, t, d_out)
        keys = self.W_key(x)  # (b, t, d_out)
        values = self.W_value(x)  # (b, t, d_out)

        # ② 打分。多了批维度，.T 会把三维全倒过来，所以指明只交换后两维；@ 对批里的每句话各乘一次。
        scores = queries @ keys.transpose(1, 2)  # (b, t, t)

        # ③ 因果掩码。掩码是按最长序列建的，这一批可能更短，所以只取左上角 t × t 的一块。
        #    masked_fill_ 末尾的下划线表示就地修改，不另外占一份内存。
        scores.masked_fill_(self.mask[:t, :t], -torch.inf)

        # ④ 缩放、归一化、随机丢弃。dropout 放在 softmax 之后：丢的是权重，不是分数。
        weights = torch.softmax(scores / keys.shape[-1] ** 0.5, dim=-1)  # (b, t, t)
        weights = self.dropout(weights)

        # ⑤ 按权重把值加起来。
        return weights @ values  # (b, t, d_out)


torch.manual_seed(123)
context_length = batch.shape[1]
ca = CausalAttention(d_in, d_out, context_length, 0.0)
context_vecs = ca(batch)  # (b, t, d_out)
print("CausalAttention 的输出")
print(context_vecs)
print(f"形状　{tuple(context_vecs.shape)}　(b, t, d_out)")

# %% 序列可以比 context_length 短：截取掩码的用处
# 前 4 个词反正看不到后 2 个，所以只送前 4 个进去，结果与整句话的前 4 行相同。
# 生成文本正是靠这一点：词一个个增加，已经算过的位置不会变。
short_vecs = ca(batch[:, :4])  # (b, 4, d_out)
difference = (short_vecs - context_vecs[:, :4]).abs().max()
print(f"\n只送前 4 个词　{tuple(short_vecs.shape)}　与整句话的前 4 行最多相差 {difference:.1e}")

# %% 参数、buffer、普通属性：换设备时谁跟着走，存盘时谁在里面
# "meta" 是一个只记形状、不存数据的假设备，每台电脑都有，正好用来看换设备时谁跟着走。
moved = CausalAttention(d_in, d_out, context_length, 0.0)
moved.plain_mask = torch.ones(context_length, context_length)  # 普通属性：没有登记，nn.Module 不知道它的存在
print("\n参数　　　　", [name for name, _ in moved.named_parameters()])
print("会存盘的　　", list(moved.state_dict()))
moved.to("meta")
devices = f"W_query 在 {moved.W_query.weight.device}，mask 在 {moved.mask.device}"
print(f"换设备之后　 {devices}，plain_mask 在 {moved.plain_mask.device}")

# %% dropout 只在训练时生效：train() 与 eval()
# 新建的模块默认是训练模式，评估和生成之前一定要调用 eval()，否则每次结果都不同。
noisy = CausalAttention(d_in, d_out, context_length, 0.5)
print("\n训练模式，同样的输入算两次，结果相同吗？", torch.equal(noisy(batch), noisy(batch)))
noisy.eval()
print("评估模式，同样的输入算两次，结果相同吗？", torch.equal(noisy(batch), noisy(batch)))

# %% 这个数字对吗？
print("\n这个数字对吗？")
same = torch.allclose(weights, masked_simple_norm)
confirm("两种遮法得到的权重相同", same, "办法一忘了重新归一化，或 triu 的 diagonal 不是 1")
one = torch.allclose(weights.sum(dim=-1), torch.ones(6))
confirm("遮住之后每行之和仍为 1", one, "填的不是 -inf，或填在了 softmax 之后")
scaled = torch.where(dropped_weights == 0, 0, weights / (1 - 0.5))
same = torch.equal(dropped_weights, scaled)
confirm("dropout 之后，每个权重要么是 0，要么正好是原来的 2 倍", same, "放大的倍数不是 1/(1-p)，或 dropout 用了两次")
same = torch.allclose(context_vecs[0, 0], torch.tensor([-0.4519, 0.2216]), atol=1e-4)
confirm("CausalAttention 的第一行与原书一致：[-0.4519, 0.2216]", same, "种子或创建投影的次序不同，或因果掩码没有生效")
same = torch.allclose(context_vecs[0, 1], torch.tensor([-0.5874, 0.0058]), atol=1e-4)
confirm("第二行与原书一致：[-0.5874, 0.0058]", same, "因果掩码没有生效，或忘了除以 √k")
confirm("同一句话放两遍，两份输出相同", torch.equal(context_vecs[0], context_vecs[1]), "dropout 没有设成 0.0")
changed = batch.clone()
changed[:, -1] = 0  # 抹掉最后一个词
same = torch.equal(ca(changed)[:, :-1], context_vecs[:, :-1])
confirm("抹掉最后一个词，不影响前面 5 个词的输出", same, "因果掩码没有生效")

# %% 动手改
# 1. 把 CausalAttention 里的 diagonal=1 改成 0，看输出里的 nan 从哪里来；改成 2，看哪三条自查发现它偷看了一个词。
# 2. 把 CausalAttention 里的 -torch.inf 改成 0：不会报错，但后面的词又漏了进来，因为 e^0 = 1。
# 3. 把 self.mask[:t, :t] 改成 self.mask，看「只送前 4 个词」那一格报什么错。
