"""第 7 章 · 实验　奖励模型：照着它的分数挑答案，会越挑越好吗？

问题：　只看一对对"这个比那个好"，学出一个打分的模型（奖励模型，reward model）。从 n 个答案里挑它打分最高的，n 越大，真的越好吗？
先猜：　一个只看长度的奖励模型，也能猜对六成多的偏好。照它的分数从 512 个里挑一个，比随手拿一个好，还是坏？（先想 10 秒，再运行）
看点：　① 准确率的上限不是 100%：标注的人自己也有犹豫，知道真奖励，上限就算得出；② 左下：学到的分数一路涨，真奖励先涨后跌，这就是过度优化
        （over-optimisation）；③ 右上：什么都不变，只多写几个字，学到的分数怎样变；④ 看得懂题的模型，要几对标注才用得上它的本事。
动手改：1. 把 RewardModel 里的 (lengths - 1)[:, None] 改成 lengths.max().repeat(len(lengths), 1) - 1，加 --quick 运行：取的是最后一个位置，也就是填充，自查变成 ✗。
        2. 把 compute_reward_loss 里的 chosen - rejected 改成 rejected - chosen，加 --quick 运行：越学越反，准确率低过一半，自查变成 ✗。
        3. 把 best_of_n 里的 rewards.gather(1, order) 改成 rewards，加 --quick 运行：挑答案与分数无关，自查变成 ✗。

运行：
    python ch07/experiments/exp_reward_model.py            # 从零练，不用下载权重；图片写到 ch07/outputs/
    python ch07/experiments/exp_reward_model.py --quick    # 每种只练几步：看流程，不下结论
    约 4 分钟，2 GB（2 核 CPU）；练过的存着，断了再运行就接着做；--quick 约 7 秒

真实的偏好里，谁也不知道真奖励是多少；这里题目和答案按规则生成，真奖励是一个公式，学得像不像才查得出。

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小　l 几种 n　n 几对　p 几道题　m 每道题几个答案
"""

import argparse
import hashlib
import itertools
import json
import math
import os
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn as nn
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
# 题：四个数字，最大的是哪个。答案：（客气话）几个解释的词，一个数字，结束。
WORDS = ["<填充>", "<结束>", "？", *"0123456789", "您好", "请", "谢谢", "因为", "所以", "先", "再", "比", "看"]
PAD, END, ASK, DIGIT, POLITE, EXPLAIN, LONGEST = 0, 1, 2, 3, 13, 16, 48
# 改这里：真奖励 = RIGHT·对不对 + COURTESY·客气不客气 + MORE·解释几个词（到 ENOUGH 个为止）− TOO_MUCH·多出来的
RIGHT, COURTESY, MORE, ENOUGH, TOO_MUCH = 2.0, 1.0, 0.4, 8, 1.0
AVERAGE_WORDS = 2.0  # 解释平均几个词。越长越少见，超过 ENOUGH 的只有百分之几：标注里没几条，挑的时候却挑得到
LENGTH, BAG, MODEL, SHUFFLED = "只看长度", "词袋", "Transformer", "Transformer，标签打乱"
CASES = [(LENGTH, 4000), (BAG, 4000), (MODEL, 250), (MODEL, 1000), (MODEL, 4000), (MODEL, 16_000), (SHUFFLED, 4000)]  # 哪种模型，标注几对
SEEDS, STEPS, BATCH_SIZE, LEARNING_RATE = 5, 1000, 32, 1e-3
QUESTIONS, CANDIDATES, TEST_PAIRS = 80, 1024, 4000  # 几道没见过的题，每题几个答案可挑；几对新的用来考
SIZES = [2**i for i in range(10)]  # 从几个里挑：1 … 512
CONFIG = {"vocab_size": len(WORDS), "context_length": LONGEST, "emb_dim": 32, "n_heads": 4, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": False}


# region 沿用 ch03/main: MultiHeadAttention
class MultiHeadAttention(nn.Module):
    """带因果掩码的多头自注意力：h 个头并行计算，再拼接、混合。（详解见 ch03/main/example_05_multihead_attention.py）"""

    def __init__(self, d_in, d_out, context_length, dropout, num_heads, qkv_bias=False):
        super().__init__()
        if d_out % num_heads != 0:
            raise ValueError(f"d_out={d_out} 不能被 num_heads={num_heads} 整除，无法平均分给每个头")
        self.d_out = d_out
        self.num_heads = num_heads
        self.head_dim = d_out // num_heads
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("mask", torch.triu(torch.ones(context_length, context_length, dtype=torch.bool), diagonal=1))

    def forward(self, x):
        b, t, _ = x.shape
        queries = self.W_query(x)  # (b, t, d_out)
        keys = self.W_key(x)  # (b, t, d_out)
        values = self.W_value(x)  # (b, t, d_out)
        queries = queries.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        keys = keys.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        values = values.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        scores = queries @ keys.transpose(2, 3)  # (b, h, t, t)
        scores.masked_fill_(self.mask[:t, :t], -torch.inf)
        weights = torch.softmax(scores / self.head_dim**0.5, dim=-1)  # (b, h, t, t)
        weights = self.dropout(weights)
        context = (weights @ values).transpose(1, 2)  # (b, t, h, k)
        context = context.contiguous().view(b, t, self.d_out)  # (b, t, d_out)
        return self.out_proj(context)


# endregion


# region 沿用 ch04/main: LayerNorm, GELU, FeedForward, TransformerBlock, GPTModel
class LayerNorm(nn.Module):
    """层归一化（layer normalization）：把每个词元的 d 个数调成均值 0、方差 1，再学着缩放和平移。（详解见 ch04/main/example_02_layernorm.py）"""

    def __init__(self, emb_dim):
        super().__init__()
        self.eps = 1e-5
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x):
        mean = x.mean(dim=-1, keepdim=True)  # (…, 1)
        var = x.var(dim=-1, keepdim=True, unbiased=False)  # (…, 1)
        norm_x = (x - mean) / torch.sqrt(var + self.eps)  # (…, d)
        return self.scale * norm_x + self.shift


class GELU(nn.Module):
    """GELU 激活函数：像 ReLU，但拐弯是圆滑的。（详解见 ch04/main/example_03_feedforward.py）"""

    def forward(self, x):
        return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


class FeedForward(nn.Module):
    """前馈网络（feed forward）：先升到 4 倍维度，过激活函数，再降回来。（详解见 ch04/main/example_03_feedforward.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(cfg["emb_dim"], 4 * cfg["emb_dim"]),
            GELU(),
            nn.Linear(4 * cfg["emb_dim"], cfg["emb_dim"]),
        )

    def forward(self, x):
        return self.layers(x)


class TransformerBlock(nn.Module):
    """Transformer 块：注意力 + 前馈网络，各自先归一化、再用残差连接加回去。（详解见 ch04/main/example_05_transformer_block.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.att = MultiHeadAttention(
            d_in=cfg["emb_dim"],
            d_out=cfg["emb_dim"],
            context_length=cfg["context_length"],
            num_heads=cfg["n_heads"],
            dropout=cfg["drop_rate"],
            qkv_bias=cfg["qkv_bias"],
        )
        self.ff = FeedForward(cfg)
        self.norm1 = LayerNorm(cfg["emb_dim"])
        self.norm2 = LayerNorm(cfg["emb_dim"])
        self.drop_shortcut = nn.Dropout(cfg["drop_rate"])

    def forward(self, x):
        shortcut = x
        x = self.norm1(x)
        x = self.att(x)  # (b, t, d)
        x = self.drop_shortcut(x)
        x = x + shortcut
        shortcut = x
        x = self.norm2(x)
        x = self.ff(x)  # (b, t, d)
        x = self.drop_shortcut(x)
        return x + shortcut


class GPTModel(nn.Module):
    """GPT：词嵌入 + 位置嵌入 → 一摞 Transformer 块 → 归一化 → 对每个位置给出整个词表的分数。（详解见 ch04/main/example_06_gpt_model.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(*[TransformerBlock(cfg) for _ in range(cfg["n_layers"])])
        self.final_norm = LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, in_idx):
        t = in_idx.shape[1]
        if t > self.pos_emb.num_embeddings:
            raise ValueError(f"输入有 {t} 个词元，超过了模型的上下文长度 {self.pos_emb.num_embeddings}")
        tok_embeds = self.tok_emb(in_idx)  # (b, t, d)
        pos_embeds = self.pos_emb(torch.arange(t, device=in_idx.device))  # (t, d)
        x = tok_embeds + pos_embeds  # (b, t, d)
        x = self.drop_emb(x)
        x = self.trf_blocks(x)  # (b, t, d)
        x = self.final_norm(x)
        return self.out_head(x)  # (b, t, V)


# endregion


# region 沿用 ch04/experiments/exp_seed_noise.py: side_by_side, paired_interval
def side_by_side(job, cases, folder, workers=None):
    """每个 case 运行一次 job(*case)，几个进程并排，做完一个存一个；存过的直接读。（详解见 ch04/experiments/exp_seed_noise.py）"""
    source = Path(job.__globals__["__file__"]).read_bytes()
    paths = {case: folder / f"{hashlib.sha256(source + repr(case).encode()).hexdigest()[:16]}.json" for case in cases}
    todo = [case for case in paths if not paths[case].is_file()]
    folder.mkdir(parents=True, exist_ok=True)

    def save(case, result):
        part = paths[case].with_suffix(".part")
        part.write_text(json.dumps(result), encoding="utf-8")
        os.replace(part, paths[case])
    workers = min(workers or os.cpu_count(), len(todo))
    progress = tqdm(total=len(todo), desc="训练", unit="个", leave=False, disable=None if todo else True)
    if workers <= 1:
        torch.set_num_threads(1)
        for case in todo:
            save(case, job(*case))
            progress.update()
    else:
        with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            running = {pool.submit(job, *case): case for case in todo}
            try:
                for future in as_completed(running):
                    save(running[future], future.result())
                    progress.update()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    progress.close()
    return {case: json.loads(path.read_text(encoding="utf-8")) for case, path in paths.items()}


def paired_interval(differences):
    """几个种子的差，平均是多少，真正的平均差有 99% 的把握落在哪里。（详解见 ch04/experiments/exp_seed_noise.py）"""
    t99 = {5: 4.604, 6: 4.032, 7: 3.707, 8: 3.499, 9: 3.355, 10: 3.250}
    n = len(differences)
    if n not in t99:
        raise ValueError(f"有 {n} 个差，要 5 到 10 个：更少，区间宽得没有用；更多，t99 里要添一项")
    return statistics.mean(differences), t99[n] * statistics.stdev(differences) / math.sqrt(n)


# endregion


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def true_reward(right, polite, words):
    """真奖励：答案本来值几分。三样都是同样形状的张量，返回也是。"""
    return RIGHT * right + COURTESY * polite + MORE * words.clamp(max=ENOUGH) - TOO_MUCH * (words - ENOUGH).clamp(min=0)


def make_answers(n, m, generator, right=None, polite=None, words=None):
    """出 n 道题，每道写 m 个答案；对不对、客气不客气、解释几个词，没有指定就各自随机。

    参数:
        n, m (int): 几道题，每道几个答案
        generator (torch.Generator): 随机数
        right, polite (bool 或 None): 指定对不对、客气不客气
        words (int 或 None): 指定解释几个词

    返回:
        dict: ids (n, m, t)，题和答案连在一起；length、reward、right、polite、words 都是 (n, m)
    """
    question = torch.rand(n, 10, generator=generator).argsort(dim=1)[:, :4]  # (n, 4)　四个不同的数字
    ranked = question.sort(dim=1, descending=True).values  # (n, 4)
    draw = lambda: torch.rand(n, m, generator=generator)  # noqa: E731
    correct, courteous = draw() < 0.35, draw() < 0.3  # (n, m)，(n, m)
    count = ((1 - draw()).log() / math.log(AVERAGE_WORDS / (AVERAGE_WORDS + 1))).floor().long().clamp(max=40)  # (n, m)　几何分布
    correct = correct if right is None else torch.full_like(correct, right)  # (n, m)
    courteous = courteous if polite is None else torch.full_like(courteous, polite)  # (n, m)
    count = count if words is None else torch.full_like(count, words)  # (n, m)
    digit = ranked.gather(1, torch.where(correct, 0, torch.randint(1, 4, (n, m), generator=generator)))  # (n, m)　答错就是另外三个里的一个

    place = torch.arange(LONGEST) - 5  # (t,)　答案里的第几个；前 5 个是题
    first, last = courteous.long()[:, :, None], (courteous + count)[:, :, None]  # (n, m, 1)　解释从哪里起，数字在哪里
    ids = torch.full((n, m, LONGEST), PAD)  # (n, m, t)
    ids[:, :, :4], ids[:, :, 4] = question[:, None] + DIGIT, ASK
    ids = torch.where((place >= 0) & (place < first), torch.randint(POLITE, EXPLAIN, ids.shape, generator=generator), ids)
    ids = torch.where((place >= first) & (place < last), torch.randint(EXPLAIN, len(WORDS), ids.shape, generator=generator), ids)
    ids = torch.where(place == last, digit[:, :, None] + DIGIT, ids)
    ids = torch.where(place == last + 1, END, ids)
    reward = true_reward(correct, courteous, count)  # (n, m)
    return {"ids": ids, "length": last[:, :, 0] + 7, "reward": reward, "right": correct, "polite": courteous, "words": count}


def make_pairs(n, generator, shuffled=False):
    """n 对标注：同一道题的两个答案，按 Bradley–Terry 模型掷一次骰子，`P(第一个更好) = σ(r₁ − r₂)`。

    参数:
        n (int): 几对
        generator (torch.Generator): 随机数
        shuffled (bool): True 时标签与奖励无关，各一半

    返回:
        tuple: 选中的、被拒的，各是 ids (n, t) 和 length (n,)；选中的真的更好的概率 (n,)
    """
    answers = make_answers(n, 2, generator)
    chance = torch.sigmoid(answers["reward"][:, 0] - answers["reward"][:, 1])  # (n,)
    first = torch.rand(n, generator=generator) < (0.5 if shuffled else chance)  # (n,)
    rows, chosen = torch.arange(n), (~first).long()  # (n,)，(n,)
    sides = [(answers["ids"][rows, side], answers["length"][rows, side]) for side in (chosen, 1 - chosen)]
    return *sides, torch.where(first, chance, 1 - chance)


class CountingModel(nn.Module):
    """不看次序、只数数的奖励模型：每个词出现几次，乘上学到的分值，加起来。

    参数:
        only_length (bool): True 时连是什么词也不看，只看一共几个
    """

    def __init__(self, only_length):
        super().__init__()
        self.only_length, self.head = only_length, nn.Linear(1 if only_length else len(WORDS) - 1, 1, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, ids, lengths):
        """打分：数一数，乘上分值；参数和返回与 RewardModel 的相同。

        参数:
            ids, lengths (Tensor): (b, t) 和 (b,)，后一个用不着

        形状:
            → (b,)
        """
        counts = nn.functional.one_hot(ids, len(WORDS))[:, :, 1:].sum(dim=1).float()  # (b, V - 1)　填充是第 0 个，不数
        return self.head(counts.sum(dim=1, keepdim=True) if self.only_length else counts)[:, 0]  # (b,)


class RewardModel(nn.Module):
    """奖励模型：语言模型的身体，输出层换成一个数。与第 6 章换成两类是同一个办法。"""

    def __init__(self):
        super().__init__()
        self.gpt = GPTModel(CONFIG)
        self.gpt.out_head = nn.Linear(CONFIG["emb_dim"], 1, bias=False)  # 偏置没有用：两个答案的分数相减，就消掉了
        # nn.Embedding 默认的标准差是 1，每个词元、每个位置像一个独立的编号，几百对标注一背就会；小一些，才先学到通用的规律。
        nn.init.normal_(self.gpt.tok_emb.weight, std=0.1)
        nn.init.zeros_(self.gpt.pos_emb.weight)

    def forward(self, ids, lengths):
        """打分：看最后一个真词元。

        参数:
            ids, lengths (Tensor): 题和答案 (b, t)；各有几个真词元 (b,)

        返回:
            Tensor: (b,)
        """
        scores = self.gpt(ids[:, : int(lengths.max())])[:, :, 0]  # (b, t)
        # 取最后一个真词元的：因果掩码下，只有它看过全部。填充在右边，取 [:, -1] 就取到了填充。
        return scores.gather(1, (lengths - 1)[:, None])[:, 0]  # (b,)


def compute_reward_loss(chosen, rejected):
    """Bradley–Terry 损失：−log σ(r_选中 − r_被拒)，即"选中的更好"这句话的交叉熵。

    只管差：两个分数同加一个数，损失不变。所以不同题目的分数不能比，分数的零点也没有意义。

    参数:
        chosen, rejected (Tensor): 两边的分数，(b,)

    返回:
        Tensor: 损失，一个数

    出处: Bradley 与 Terry，1952；Ouyang 等，InstructGPT，2022
    """
    return -nn.functional.logsigmoid(chosen - rejected).mean()


@torch.no_grad()
def score_all(model, ids, lengths):
    """分批打分；一样长的排在一起，短的不必陪着长的算。

    参数:
        model (nn.Module): 奖励模型
        ids, lengths (Tensor): 题和答案 (n, t)；各有几个真词元 (n,)

    返回:
        Tensor: (n,)
    """
    order = lengths.argsort()  # (n,)
    scores = torch.empty(len(ids))  # (n,)
    for rows in order.split(2048):
        scores[rows] = model(ids[rows], lengths[rows])
    return scores


def fit(kind, pairs, seed, steps):
    """学一个奖励模型；留五分之一的标注来决定用哪一步的：标注少，走几十步就背下来了。

    参数:
        kind (str): LENGTH、BAG、MODEL 或 SHUFFLED
        pairs (int): 标注几对
        seed (int): 标注、初始值、次序都由它定
        steps (int): 最多几步

    返回:
        nn.Module: 留出的标注上损失最小的那一步
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    good, bad, _ = make_pairs(pairs, generator, kind == SHUFFLED)
    model = CountingModel(kind == LENGTH) if kind in (LENGTH, BAG) else RewardModel()
    # 数数的模型只有几个系数，学习率大十倍才走得动。
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE * (10 if kind in (LENGTH, BAG) else 1), weight_decay=0.01)
    held, best, worse = pairs // 5, (math.inf, None), 0
    for step in range(steps):
        if step % 20 == 0 or step == steps - 1:
            loss = compute_reward_loss(*(score_all(model, ids[:held], lengths[:held]) for ids, lengths in (good, bad))).item()
            worse = 0 if loss < best[0] else worse + 1
            best = min(best, (loss, {key: value.clone() for key, value in model.state_dict().items()}), key=lambda item: item[0])
            if worse == 8:
                break
        rows = torch.randint(held, pairs, (BATCH_SIZE,), generator=generator)  # (b,)
        chosen, rejected = model(torch.cat([good[0][rows], bad[0][rows]]), torch.cat([good[1][rows], bad[1][rows]])).chunk(2)
        optimizer.zero_grad()
        compute_reward_loss(chosen, rejected).backward()
        optimizer.step()
    model.load_state_dict(best[1])
    return model


def best_of_n(scores, rewards, n):
    """从 m 个里随便取 n 个，挑分数最高的：它的 rewards 平均是多少。不必真的抽，有公式。

    参数:
        scores, rewards (Tensor): 挑的时候看的分数；挑中以后看的量，都是 (p, m)
        n (int): 取几个

    返回:
        Tensor: 每道题一个数，(p,)
    """
    m, order = scores.shape[1], scores.argsort(dim=1)  # 一个数，(p, m)
    rank = torch.arange(1, m + 1, dtype=torch.float64)  # (m,)
    # 从低到高第 i 个，要当上最高的，其余 n − 1 个都得在它前面的 i − 1 个里：C(i−1, n−1) / C(m, n) = C(i−1, n−1)·n / (C(m−1, n−1)·m)。
    log_choose = torch.lgamma(rank) - torch.lgamma((rank - n).clamp(min=0) + 1)  # (m,)　ln C(i−1, n−1)，差一个公共的常数；阶乘太大，用对数
    weights = (log_choose - log_choose[-1]).exp() * n / m * (rank >= n)  # (m,)
    return (rewards.gather(1, order).double() * weights).sum(dim=1)  # (p,)


def kl_of_best_of_n(n):
    """从 n 个里挑一个，离原来的分布多远（KL 散度，纳特）：ln n − (n − 1) / n。分数没有并列时正好是它，有并列就比它小。"""
    return math.log(n) - (n - 1) / n


def rank_correlation(a, b):
    """等级相关（Spearman）：先换成名次，并列的取平均，再算相关系数；有一边全都并列，就是 0。

    参数:
        a, b (Tensor): 每道题各算各的，(p, m)

    返回:
        Tensor: (p,)
    """
    ranks = [(torch.sign(x[:, :, None] - x[:, None])).double().sum(dim=2) for x in (a, b)]  # 两个 (p, m)　比它小的个数减比它大的，平均是 0
    return (ranks[0] * ranks[1]).sum(dim=1) / (ranks[0].norm(dim=1) * ranks[1].norm(dim=1)).clamp(min=1e-9)  # (p,)


def train_once(kind, pairs, seed, steps, questions):
    """学一个，与真奖励比。考的题、可挑的答案只由种子定，各种模型用的是同一份。

    参数:
        kind, pairs, seed, steps: 见 fit
        questions (int): 挑答案的题有几道

    返回:
        dict: 各种数，画图和表都用它
    """
    model = fit(kind, pairs, seed, steps)
    generator = torch.Generator().manual_seed(10_000 + seed)  # 与标注分开：题、答案都是新的
    good, bad, chance = make_pairs(TEST_PAIRS, generator)
    gap = score_all(model, *good) - score_all(model, *bad)  # (n,)　标注选中的，比另一个高多少
    # 打成平手（只看长度时很多）算对一半。标注本身有噪声，所以不数它猜对几对，直接算它猜对的概率：少一层运气。
    side = (gap > 0).float() + (gap == 0).float() / 2  # (n,)
    claimed = torch.sigmoid(gap)  # (n,)
    # 校准（calibration）：它说有七成把握的，真的是七成吗？都换到它看好的那一边再分档；照标注的那一边分，标签就漏进来了。
    sure, truth = claimed.maximum(1 - claimed), torch.where(claimed >= 0.5, chance, 1 - chance)  # (n,)，(n,)
    bins = [rows for rows in ((sure * 20).long() == i for i in range(10, 21)) if rows.sum() >= 50]
    answers = make_answers(questions, CANDIDATES, generator)
    scores = score_all(model, answers["ids"].flatten(0, 1), answers["length"].flatten()).view(questions, CANDIDATES)  # (p, m)
    result = {
        "accuracy": (side * chance + (1 - side) * (1 - chance)).mean().item(), "bound": chance.maximum(1 - chance).mean().item(),
        "order": torch.where(chance > 0.5, side, 1 - side)[chance != 0.5].mean().item(),
        "rank": rank_correlation(scores[:, :256], answers["reward"][:, :256]).mean().item(), "miss": (claimed - chance).abs().mean().item(),
        "bins": [(sure[rows].mean().item(), truth[rows].mean().item()) for rows in bins],
    }  # fmt: skip
    for name, (order, ruler) in {"learned": (scores, scores), "true": (scores, answers["reward"]), "right": (scores, answers["right"]), "words": (scores, answers["words"]), "oracle": (answers["reward"],) * 2}.items():
        picked = torch.stack([best_of_n(order, ruler, size) for size in SIZES])  # (l, p)
        result[name] = [part.mean(dim=1).tolist() for part in (picked[:, ::2], picked[:, 1::2])]  # 题分两半：一半用来找顶点，一半用来量
    # 只改一样：同样的题，都答对、都客气，解释从 0 个词加到 24 个。
    probes = [make_answers(50, 1, torch.Generator().manual_seed(seed), True, True, count) for count in range(25)]
    result["sweep"] = [score_all(model, probe["ids"][:, 0], probe["length"][:, 0]).mean().item() for probe in probes]
    return result


def average(runs, key):
    """每种 n 一个数：几个种子、两半题目的平均。"""
    return torch.tensor([run[key] for run in runs]).mean(dim=(0, 1)).tolist()


def report(results):
    """两张表：学得像不像；照着它挑，挑到的怎样。

    参数:
        results (dict): （哪种模型，标注几对）→ 每个种子的结果
    """
    first = next(iter(results.values()))
    print(f"\n学得像不像？考 {TEST_PAIRS} 对新的，{len(first)} 个种子的平均；准确率的上限 {statistics.mean(run['bound'] for run in first):.1%}（知道真奖励，也只能猜对这么多）")
    for (kind, pairs), runs in results.items():
        accuracy, order, rank, miss = (statistics.mean(run[key] for run in runs) for key in ("accuracy", "order", "rank", "miss"))
        low, high = (pick(run["accuracy"] for run in runs) for pick in (min, max))
        print(f"  {kind}，{pairs} 对　准确率 {accuracy:.1%}（{low:.1%} … {high:.1%}）　与真奖励同序 {order:.1%}　等级相关 {rank:.2f}　它说的概率与真的平均差 {miss:.2f}")
    print("\n照着它的分数，从 n 个里挑一个：真奖励（括号里是答对的比例、解释的词数）")
    print("  照真奖励挑，最高能到　" + "　".join(f"n = {SIZES[i]} {average(first, 'oracle')[i]:.2f}" for i in (0, 4, 9)))
    for (kind, pairs), runs in results.items():
        learned, true, right, words = (average(runs, key) for key in ("learned", "true", "right", "words"))
        print(f"  {kind}，{pairs} 对　" + "　".join(f"n = {SIZES[i]} {true[i]:.2f}（{right[i]:.0%}，{words[i]:.1f}）" for i in (0, 4, 9)) + f"　学到的分数 {learned[0]:.2f} → {learned[9]:.2f}")


def judge(results):
    """过度优化了吗：顶点用一半的题找，跌了多少用另一半的题量，同一个种子配对相减。

    参数:
        results (dict): 见 report
    """
    print(f"\n过度优化了吗？顶点由一半的题来定，从顶点到 n = {SIZES[-1]} 变了多少由另一半的题来量（± 是 99% 区间的半宽）")
    for (kind, pairs), runs in [item for item in results.items() if item[0][0] != SHUFFLED]:
        found = torch.tensor([run["true"][0] for run in runs]).mean(dim=0)  # (l,)
        peak = int(found.argmax())
        if peak == len(SIZES) - 1:
            print(f"  {kind}，{pairs} 对　到 n = {SIZES[-1]} 还没有到顶")
            continue
        mean, half = paired_interval([run["true"][1][-1] - run["true"][1][peak] for run in runs])
        climb = statistics.mean(run["learned"][1][-1] - run["learned"][1][peak] for run in runs)
        word = "分不出涨跌" if abs(mean) <= half else "跌了：过度优化" if mean < 0 else "还在涨"
        print(f"  {kind}，{pairs} 对　顶点 n = {SIZES[peak]}（KL {kl_of_best_of_n(SIZES[peak]):.1f} 纳特）　之后真奖励 {mean:+.2f} ± {half:.2f}，{word}；学到的分数 {climb:+.2f}")
    # 只看准确率，看得出哪个经得起挑吗？找准确率最接近的一对。
    level = {case: statistics.mean(run["accuracy"] for run in runs) for case, runs in results.items()}
    bag = next(case for case in results if case[0] == BAG)
    twin = min((case for case in results if case[0] == MODEL), key=lambda case: abs(level[case] - level[bag]))
    mean, half = paired_interval([average([a], "true")[-1] - average([b], "true")[-1] for a, b in zip(results[twin], results[bag])])
    word = "分不出" if abs(mean) <= half else "准确率看不出这个"
    print(f"准确率最接近的两个：{BAG} {level[bag]:.1%}，{MODEL}（{twin[1]} 对）{level[twin]:.1%}；从 {SIZES[-1]} 个里挑，后者的真奖励比前者 {mean:+.2f} ± {half:.2f}：{word}")


def draw(results, path):
    """四幅图：准确率随标注几对；只多写几个字；从 n 个里挑；它说的概率与真的。

    参数:
        results (dict): 见 report
        path (Path): 图片写到哪里
    """
    import matplotlib.pyplot as plt
    import zhplot  # noqa: F401　导入它，图上就能写中文

    figure, ((learn, longer), (pick, sure)) = plt.subplots(2, 2, figsize=(12, 9), layout="constrained")
    kl, words = [kl_of_best_of_n(size) for size in SIZES], torch.arange(25)
    for color, ((kind, pairs), runs) in enumerate(results.items()):
        accuracy, style = [run["accuracy"] for run in runs], {"color": f"C{color}", "label": f"{kind}，{pairs} 对"}
        learn.plot([pairs] * len(runs), accuracy, "o", alpha=0.6, **style)
        true, learned = average(runs, "true"), average(runs, "learned")
        pick.plot(kl, true, "o-", markersize=3, **style)
        if kind != SHUFFLED:  # 零点没有意义：都移到同一个起点
            pick.plot(kl, [value - learned[0] + true[0] for value in learned], "--", linewidth=1, color=f"C{color}")
            sweep = torch.tensor([run["sweep"] for run in runs]).mean(dim=0)  # (25,)
            longer.plot(words.tolist(), (sweep - sweep[0]).tolist(), color=f"C{color}", linewidth=5 if kind == LENGTH else 1.5, alpha=0.4 if kind == LENGTH else 1)
            sure.plot(*zip(*[point for run in runs for point in run["bins"]]), ".", color=f"C{color}", alpha=0.6)
    learn.axhline(statistics.mean(run["bound"] for run in runs), color="0.4", linestyle=":")
    learn.set(title="猜对偏好的比例（一个点一个种子，点线是上限）", xlabel="标注几对", ylabel="准确率", xscale="log")
    longer.plot(words.tolist(), true_reward(0, 0, words).tolist(), "k", linewidth=2, label="真奖励")
    longer.set(title="别的都不变，只多写几个解释的词（颜色同左）", xlabel="解释几个词", ylabel="分数变了多少", ylim=(-8, 6))
    pick.plot(kl, average(runs, "oracle"), "k", linewidth=2, label="照真奖励挑（上限）")
    pick.set(title="从 n 个里挑：实线是真奖励，虚线是学到的分数", xlabel="KL = ln n − (n − 1)/n（纳特）；n 从 1 到 512", ylabel="分数", ylim=(-5, 8))
    sure.plot([0.5, 1], [0.5, 1], "0.4", linestyle=":")
    sure.set(title="它说这个更好的概率，与真的概率（点线上最好）", xlabel="它说的（分成十档，每档一个点）", ylabel="真的", xlim=(0.5, 1))
    for axis in (learn, longer, pick):
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def check(results):
    """自查。

    参数:
        results (dict): 见 report
    """
    print("\n这个数字对吗？")
    torch.manual_seed(0)
    model, answers = RewardModel(), make_answers(50, 1, torch.Generator().manual_seed(0))
    ids, lengths = answers["ids"][:, 0], answers["length"][:, 0]
    together = score_all(model, ids, lengths)  # (b,)
    alone = torch.cat([score_all(model, ids[i : i + 1, : lengths[i]], lengths[i : i + 1]) for i in range(50)])  # (b,)
    confirm(f"成批填充着打的分，与一个一个、不填充打的相同（差 {(together - alone).abs().max():.0e}）", torch.allclose(together, alone, atol=1e-5), "取的是最后一个位置，那里是填充")
    confirm("两个分数都加 7，损失不变：零点没有意义", torch.isclose(compute_reward_loss(together, alone.flip(0)), compute_reward_loss(together + 7, alone.flip(0) + 7), atol=1e-6).item(), "损失里不只有差")
    scores, rewards = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1))
    by_hand = [torch.stack([rewards[q, max(subset, key=scores[q].__getitem__)] for subset in itertools.combinations(range(6), 3)]).mean() for q in range(3)]
    confirm("从 6 个里取 3 个再挑：公式与把 20 种取法都挑一遍相同", torch.allclose(best_of_n(scores, rewards, 3).float(), torch.stack(by_hand), atol=1e-5), "没有按分数排，或权重写错了")
    luck = statistics.mean(run["accuracy"] for run in next(iter(results.values())))
    confirm(f"{LENGTH}，也比瞎猜强：{luck:.1%}", luck > 0.5, "损失的正负号反了")


def main():
    """几种奖励模型、几个种子，各学一次；与真奖励比，照着它们挑答案。"""
    parser = argparse.ArgumentParser(description="实验　奖励模型：照着它的分数挑答案，会越挑越好吗")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"几个种子，5 到 10（默认：{SEEDS}）")
    parser.add_argument("--quick", action="store_true", help="一个种子，每种只练几步：看流程，不下结论")
    args = parser.parse_args()
    try:
        if not 5 <= args.seeds <= 10:
            raise ValueError(f"--seeds 应在 5 到 10 之间，不能是 {args.seeds}：更少，区间宽得没有用")
        kinds, seeds, steps, questions = ([(LENGTH, 500), (BAG, 500), (MODEL, 500)], 1, 61, 4) if args.quick else (CASES, args.seeds, STEPS, QUESTIONS)
        example = make_answers(1, 3, torch.Generator().manual_seed(5))
        for ids, length, reward in zip(*(example[key][0].tolist() for key in ("ids", "length", "reward"))):
            print(f"例　{' '.join(WORDS[i] for i in ids[:length])}　真奖励 {reward:.1f}")
        cases = {case: [(*case, seed, steps, questions) for seed in range(seeds)] for case in kinds}
        found = side_by_side(train_once, sum(cases.values(), []), OUTPUTS / "exp_reward_model", workers=1 if args.quick else min(2, os.cpu_count()))
        results = {case: [found[each] for each in group] for case, group in cases.items()}
        report(results)
        if args.quick:
            print("每种只练了几步：看流程，不下结论")
        else:
            judge(results)
        path = OUTPUTS / ("reward_model_quick.png" if args.quick else "reward_model.png")
        draw(results, path)
        print(f"图片已写到 {path}")
        check(results)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
