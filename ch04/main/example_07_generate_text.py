"""第 0 章 · 待写
"""

import torch


def generate_text_simple(model, idx, max_new_tokens, context_size):
    """贪心解码（greedy decoding）：每次都选分数最高的那个词元，接到后面，再问一次。

    参数:
        model (nn.Module): 语言模型，(b, t) → (b, t, V)；应先调用 model.eval()，否则 dropout 会让结果每次不同
        idx (Tensor): 提示词的词元编号，(b, t)
        max_new_tokens (int): 再生成几个词元
        context_size (int): 模型一次最多看几个词元

    形状:
        输入 (b, t) → 输出 (b, t + max_new_tokens)

    返回:
        Tensor: 提示词连同新生成的词元

    出处: 原书 4.7 节
    """
    for _ in range(max_new_tokens):
        idx_cond = idx[:, -context_size:]  # (b, t)　太长时只留最近的 context_size 个
        with torch.no_grad():  # 只做推理，不必为求梯度记住中间结果，省内存也省时间
            logits = model(idx_cond)  # (b, t, V)
        # 每个位置都给出了"下一个词元"的分数，但前面那些位置的下一个早就知道了，只有最后一个位置是新问题。
        logits = logits[:, -1, :]  # (b, V)
        # softmax 不改变大小次序，只要最大的那个，就不必算概率了。
        idx_next = torch.argmax(logits, dim=-1, keepdim=True)  # (b, 1)
        idx = torch.cat((idx, idx_next), dim=1)  # (b, t + 1)
    return idx


# %% 待写
