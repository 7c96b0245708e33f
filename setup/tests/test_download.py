"""setup/download.py：对着本机上一个会捣乱的服务器下载。只用 127.0.0.1，不上网。"""

import contextlib
import errno
import hashlib
import importlib.util
import io
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import types
import zipfile
from collections import Counter
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "download.py"
BOOK = Path(os.environ.get("LLM_DATA_DIR", "no-such-folder"))
CONTENT = random.Random(0).randbytes(400_000)
TEXT = ("ham\t你好\nspam\tWIN!\n" * 500).encode()
posix = pytest.mark.skipif(sys.platform == "win32", reason="要用 kill -9 和 rlimit，Windows 上没有")


def zipped(member, content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("readme", "说明")
        archive.writestr(member, content)
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    """网址的第一段说怎么捣乱，如 /truncate/thing.bin；do_ 后面的名字就是它。"""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        kind = re.sub("^http://[^/]*", "", self.path).split("/")[1]  # 当代理用的时候，路径里带着完整的网址
        self.close_connection = True
        self.server.seen.append((kind, self.headers["Range"]))
        self.server.paths.append(self.path)
        self.count = [0]  # 这一次请求发了多少字节；上一个测试留下的线程只改它自己的
        self.server.sent.append(self.count)
        nth = Counter(kind for kind, _ in self.server.seen)[kind]
        with contextlib.suppress(ConnectionError):
            getattr(self, "do_" + kind.replace("-", "_"))(nth)

    def answer(self, status, headers, body=b""):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.send(body)

    def send(self, body):
        self.count[0] += len(body)
        self.wfile.write(body)

    def start(self, ranges=True, content=CONTENT, status=206, cap=None):
        """一个规矩的服务器会给的头；返回它接下来该发的内容。"""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        start, headers = 0, {}
        if asked and ranges:
            start = int(asked[1])
            if start >= len(content):
                self.answer(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": 0})
                return b""
            headers = {"Content-Range": f"bytes {start}-{min(start + cap, len(content)) - 1 if cap else len(content) - 1}/{len(content)}"}
        body = content[start : start + cap] if cap and headers else content[start:]
        self.answer(status if headers else 200, headers | {"Content-Length": len(body), "Content-Type": "application/octet-stream"})
        return body

    # ── 规矩的 ──

    def do_good(self, nth):
        self.send(self.start())

    def do_redirect(self, nth):
        self.answer(302, {"Location": "/good/thing.bin", "Content-Length": 0})

    def do_slow(self, nth):
        rest = self.start()
        for at in range(0, len(rest), 8000):
            self.send(rest[at : at + 8000])
            self.wfile.flush()
            if self.server.stop.wait(0.03):
                return

    def do_no_range(self, nth):
        self.send(self.start(ranges=False))

    def do_chunked(self, nth):
        self.answer(200, {"Transfer-Encoding": "chunked"})
        for at in range(0, len(CONTENT), 50_000):
            self.send(b"C350\r\n" + CONTENT[at : at + 50_000] + b"\r\n")
        self.send(b"0\r\n\r\n")

    def do_range_200(self, nth):  # ModelScope：给的是要的那一段，状态却是 200
        self.send(self.start(status=200))

    def do_capped(self, nth):  # 续传时一次最多给十五万字节；头一次断在十万
        self.send(self.start(cap=150_000)[: 100_000 if nth == 1 else None])

    # ── 再试就好的 ──

    def do_truncate(self, nth):  # 每次只给十几万字节
        self.send(self.start()[:150_000])

    def do_reset(self, nth):  # 每次给一些就 RST
        self.send(self.start()[:150_000])
        self.wfile.flush()
        time.sleep(0.05)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def do_stall(self, nth):  # 给一些就不动了
        self.send(self.start()[:150_000])
        self.wfile.flush()
        self.server.stop.wait(20)

    def do_busy(self, nth):  # 头两次 503
        self.send(self.start()) if nth > 2 else self.answer(503, {"Content-Length": 0})

    # ── 不行的 ──

    def do_stall_at_0(self, nth):
        self.server.stop.wait(20)

    def do_always_500(self, nth):
        self.answer(500, {"Content-Length": 0})

    def do_404(self, nth):
        self.answer(404, {"Content-Type": "text/html", "Content-Length": 4}, b"none")

    do_404_too = do_404

    def do_html(self, nth):  # 运营商的登录页：状态却是 200
        self.answer(200, {"Content-Type": "text/html; charset=utf-8", "Content-Length": 18}, b"<html>login</html>")

    def do_html_as_binary(self, nth):  # 网页冒充文件，长度也对
        self.answer(200, {"Content-Type": "application/octet-stream", "Content-Length": len(CONTENT)}, b"<html>".ljust(len(CONTENT)))

    def do_wrong_bytes(self, nth):  # 只错一个字节
        self.send(self.start(content=CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])))

    def do_wrong_then_truncate(self, nth):  # 错的内容，还断断续续
        self.send(self.start(content=CONTENT[::-1])[:150_000])

    def do_no_range_truncate(self, nth):
        self.send(self.start(ranges=False)[:200_000])

    def do_chunked_truncate(self, nth):
        self.answer(200, {"Transfer-Encoding": "chunked"}, b"C350\r\n" + CONTENT[:50_000] + b"\r\nC350\r\n" + CONTENT[50_000:60_000])

    def do_short(self, nth):
        self.send(self.start(content=CONTENT[:-5]))

    def do_long(self, nth):
        self.send(self.start(content=CONTENT + b"more"))

    def do_endless(self, nth):  # 不说多长，发个没完
        self.answer(200, {"Connection": "close"})
        for _ in range(100):
            self.send(CONTENT[::-1])

    def do_lying_place(self, nth):  # 说的位置与要的不同
        start = 10 if self.headers["Range"] else 0
        self.answer(206, {"Content-Range": f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}", "Content-Length": len(CONTENT) - 10}, CONTENT[10:])

    def do_lying_body(self, nth):  # 位置说得对，内容却是从头的
        self.send(CONTENT[: len(self.start())])

    def do_unasked_206(self, nth):
        self.answer(206, {"Content-Length": 10}, CONTENT[:10])

    def do_204(self, nth):
        self.answer(204, {})

    def do_always_416(self, nth):
        self.answer(416, {"Content-Length": 0})

    def do_loop(self, nth):
        self.answer(302, {"Location": self.path, "Content-Length": 0})

    def do_garbage(self, nth):
        self.send(b"\x00\x01 this is not HTTP\r\n\r\n")

    def do_hang_up(self, nth):
        self.connection.close()

    # ── zip ──

    def do_zip(self, nth):
        self.send(self.start(content=zipped("SMSSpamCollection", TEXT)))

    def do_zip_truncate(self, nth):
        self.send(self.start(content=zipped("SMSSpamCollection", TEXT))[:90])

    def do_zip_damaged(self, nth):
        good = bytearray(zipped("SMSSpamCollection", TEXT))
        good[120:140] = b"\xff" * 20
        self.send(self.start(content=bytes(good)))

    def do_zip_other(self, nth):
        self.send(self.start(content=zipped("别的文件", TEXT)))

    def do_zip_bomb(self, nth):
        self.send(self.start(content=zipped("SMSSpamCollection", TEXT + b"0" * 50_000_000)))

    def do_plain(self, nth):  # 同学的镜像上，是解开之后的
        self.send(self.start(content=TEXT))


@pytest.fixture(scope="module")
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.stop = True, threading.Event()
    server.seen, server.paths, server.sent = [], [], []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.stop.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def forget(server):
    server.seen.clear()
    server.paths.clear()
    server.sent.clear()


def load(folder, port=0, kinds=(), **settings):
    """导入 download.py，换上几份小文件和本机的镜像。"""
    spec = importlib.util.spec_from_file_location("download", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, value in {"DOWNLOADS": Path(folder), "TIMEOUT": 0.3, "RETRY_WAIT": 0.01, **settings}.items():
        setattr(module, name, value)
    urls = {kind: f"http://127.0.0.1:{port}/{kind}/thing.bin" for kind in kinds}
    packed = {kind: f"http://127.0.0.1:{port}/{kind}/spam.zip" for kind in kinds}
    digest = hashlib.sha256(CONTENT).hexdigest()
    module.ITEMS = {
        "thing": module.Item("thing.bin", len(CONTENT), digest, "公有领域", "测试", urls),
        "unknown-size": module.Item("unknown.bin", None, digest, "公有领域", "测试", urls),
        "spam": module.Item("spam.tsv", len(TEXT), hashlib.sha256(TEXT).hexdigest(), "公有领域", "测试", packed, "SMSSpamCollection"),
    }
    module.GROUPS = {"all": list(module.ITEMS)}
    return module


def load_real():
    spec = importlib.util.spec_from_file_location("real_download", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(monkeypatch, capsys):
    """call(模块, 参数…) → 退出码、stdout、stderr；出错时必须只有一句中文。"""

    def call(module, *args):
        monkeypatch.setattr(sys, "argv", ["download.py", *map(str, args)])
        try:
            module.main()
            code = 0
        except SystemExit as stopped:
            code = stopped.code
        out, err = capsys.readouterr()
        if code == 2:
            assert err.count("\n") == 1 and err.startswith("出错了：") and re.search("[\u4e00-\u9fff]{2}", err), err
        else:
            assert err == ""
        return code, out, err

    return call


@pytest.fixture
def run(server, tmp_path, monkeypatch, call):
    """run(镜像…, args=[…]) → 退出码、stdout、stderr；镜像按写的次序试，文件下在 tmp_path 里。"""
    monkeypatch.delenv("LLM_DATA_DIR", raising=False)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")

    def run(*kinds, args=("thing",), **settings):
        server.seen.clear()
        return call(load(tmp_path, server.server_address[1], kinds, **settings), *args)

    return run


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))


def assert_done(folder, name="thing.bin", content=CONTENT):
    assert (folder / name).read_bytes() == content
    assert names(folder) == [name]


# ── 下载得成的 ──


@pytest.mark.parametrize("kind", ["good", "redirect", "no-range", "chunked", "busy", "truncate", "reset", "stall", "capped"])
@pytest.mark.parametrize("name", ["thing", "unknown-size"])
def test_one_mirror_is_enough(run, tmp_path, server, kind, name):
    began = time.monotonic()
    code, _, err = run(kind, args=[name], ROUNDS=4 if kind == "busy" else 1)  # 有进展就接着来，不算失败
    assert code == 0, err
    assert time.monotonic() - began < 15  # stall 那边 20 秒不动，这边 0.3 秒就该不等了
    assert_done(tmp_path, "thing.bin" if name == "thing" else "unknown.bin")
    if kind in ("truncate", "reset", "stall"):  # 断了两次，每次都从断的地方接着，不从头来
        assert [asked for _, asked in server.seen] == [None, "bytes=150000-", "bytes=300000-"]
    if kind == "capped":
        assert [asked for _, asked in server.seen] == [None, "bytes=100000-", "bytes=250000-"]
    if kind == "busy":
        assert len(server.seen) == 3


# 捣乱的镜像之后还有好的：好的那个最终给出正确的文件
BAD = ["stall-at-0", "always-500", "404", "html", "html-as-binary", "wrong-bytes", "wrong-then-truncate", "short", "long", "endless", "lying-place"]
BAD += ["lying-body", "unasked-206", "204", "always-416", "loop", "garbage", "hang-up", "chunked-truncate", "no-range-truncate"]
FINE_FROM_0 = ["lying-body"]  # 只骗续传的人，从头下载是对的


@pytest.mark.parametrize("half", [False, True], ids=["从头", "接着"])
@pytest.mark.parametrize("kind", BAD)
def test_next_mirror_after_a_bad_one(run, tmp_path, kind, half):
    if half:
        (tmp_path / "thing.bin.part").write_bytes(CONTENT[:100_000])
    code, out, err = run(kind, "good")
    assert code == 0, err
    assert_done(tmp_path)
    assert kind in FINE_FROM_0 or f"{kind} 不行" in out


@pytest.mark.parametrize("half", [False, True], ids=["从头", "接着"])
@pytest.mark.parametrize("kind", BAD)
def test_nothing_wrong_is_ever_accepted(run, tmp_path, kind, half):
    """只有坏的镜像：一句中文、退出码 2，正式的名字下什么也没有；说出了下一步。"""
    if half:
        (tmp_path / "thing.bin.part").write_bytes(CONTENT[:100_000])
    code, _, err = run(kind, ROUNDS=2)
    if kind in FINE_FROM_0:
        assert code == 0
        return assert_done(tmp_path)
    assert code == 2 and kind in err
    assert all(hint in err for hint in ("--mirror", "--base-url", "HTTPS_PROXY", "--from-file"))
    assert not (tmp_path / "thing.bin").exists()


POLITE = ["html", "lying-place", "404", "always-500", "unasked-206", "204", "loop"]


# 不知道应有多大，就不知道 short 太短、long 太长
@pytest.mark.parametrize(("name", "kind"), [("thing", kind) for kind in [*POLITE, "short", "long"]] + [("unknown-size", kind) for kind in POLITE])
def test_bad_answer_does_not_spoil_the_half(run, tmp_path, server, kind, name):
    """已经下好的一半还在，下一个镜像从那里接着下。"""
    file = "thing.bin" if name == "thing" else "unknown.bin"
    (tmp_path / f"{file}.part").write_bytes(CONTENT[:123_456])
    assert run(kind, "good", args=[name])[0] == 0
    assert ("good", "bytes=123456-") in server.seen
    assert_done(tmp_path, file)


def test_content_range_counts_not_the_status(run, tmp_path, server):
    """答 200、却给了要的那一段，也能续传（ModelScope 就是这样）。"""
    (tmp_path / "thing.bin.part").write_bytes(CONTENT[:100_000])
    assert run("range-200")[0] == 0
    assert server.seen == [("range-200", "bytes=100000-")] and server.sent == [[300_000]]
    assert_done(tmp_path)


def test_server_without_range_starts_over(run, tmp_path, server):
    (tmp_path / "thing.bin.part").write_bytes(b"x" * 100_000)  # 内容是错的也不要紧：从头写
    assert run("no-range")[0] == 0
    assert len(server.seen) == 1
    assert_done(tmp_path)


def test_wrong_content_is_not_asked_again(run, server):
    """内容不对的镜像只问一次，暂时不通的会再问。"""
    run("404", "always-500", "wrong-bytes", ROUNDS=3)
    assert Counter(kind for kind, _ in server.seen) == {"404": 1, "always-500": 3, "wrong-bytes": 1}


def test_dead_address_and_waits(run, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    module = load(tmp_path, port, ["nobody"], RETRY_WAIT=2)
    waits = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    item = module.ITEMS["thing"]
    assert "连不上" in module.download(item, item.urls)
    assert waits == [2, 4]


def test_certificate_trouble_names_the_cure(run, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")

    assert "Install Certificates" in run("good", urlopen=refuse, ROUNDS=1)[2]


def test_half_of_a_wrong_file(run, tmp_path, server):
    """上次的半截是别的内容：接上之后摘要对不上，扔掉，从头再来，只一次。"""
    (tmp_path / "thing.bin.part").write_bytes(b"x" * 100_000)
    assert run("good")[0] == 0
    assert [asked for _, asked in server.seen] == ["bytes=100000-", None]
    assert_done(tmp_path)

    (tmp_path / "thing.bin").rename(tmp_path / "thing.bin.part")
    (tmp_path / "thing.bin.part").write_bytes(b"x" * 100_000)
    assert run("wrong-bytes")[0] == 2
    assert [asked for _, asked in server.seen] == ["bytes=100000-", None]
    assert names(tmp_path) == []


@pytest.mark.parametrize("length", [400_000, 400_001, 900_000])
@pytest.mark.parametrize("name", ["thing", "unknown-size"])
def test_half_is_already_whole_or_longer(run, tmp_path, server, name, length):
    """上次下完了、还没改名就被杀；或者半截比整个还长。"""
    file = "thing.bin" if name == "thing" else "unknown.bin"
    (tmp_path / f"{file}.part").write_bytes((CONTENT * 3)[:length])
    assert run("good", args=[name])[0] == 0
    assert_done(tmp_path, file)
    if length == 400_000:  # 不必再下载一遍
        assert server.sent == ([] if name == "thing" else [[0]])


# ── zip ──


def test_zip(run, tmp_path):
    assert run("zip", args=["spam"])[0] == 0
    assert_done(tmp_path, "spam.tsv", TEXT)


@pytest.mark.parametrize("kind", ["zip-damaged", "zip-other", "zip-bomb", "wrong-bytes", "html", "zip-truncate"])
def test_bad_zip(run, tmp_path, kind):
    code, _, err = run(kind, args=["spam"], ROUNDS=1)
    assert code == 2 and not (tmp_path / "spam.tsv").exists()
    assert run(kind, "zip", args=["spam"], ROUNDS=1)[0] == 0
    assert_done(tmp_path, "spam.tsv", TEXT)


def test_zip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    module = load(tmp_path)
    ready = tmp_path / "spam.tsv.part"
    ready.write_bytes(zipped("SMSSpamCollection", TEXT + b"0" * 50_000_000))
    assert module.accept(module.ITEMS["spam"], ready) != ""
    assert ready.stat().st_size == len(TEXT) + 1 and not (tmp_path / "spam.tsv").exists()


# ── 命令行 ──


def test_list_verify_and_existing(run, tmp_path, server):
    for args in ([], ["--list"], ["--list", "thing"]):
        code, out, _ = run("good", args=args)
        assert code == 0 and "没有" in out and "公有领域" in out and server.seen == []
    (tmp_path / "thing.bin.part").write_bytes(CONTENT[:100_000])
    assert "下了 0.1 MB" in run("good", args=[])[1]
    assert run("good")[0] == 0
    code, out, _ = run("good")
    assert code == 0 and "已有" in out and server.seen == []  # 有了就不再下载
    assert str(tmp_path / "thing.bin") in run("good", args=[])[1]
    code, out, _ = run("good", args=["--verify"])
    assert code == 0 and "✓" in out and "✗" not in out and out.count("没有") == 2
    (tmp_path / "thing.bin").write_bytes(CONTENT[:-1] + b"?")
    code, out, err = run("good", args=["--verify", "thing"])
    assert code == 2 and "✗" in out and str(tmp_path / "thing.bin") in err
    assert run("good")[0] == 0  # 坏的会被换成好的
    assert_done(tmp_path)


def test_data_folder_comes_first(run, tmp_path, server, monkeypatch):
    """LLM_DATA_DIR 里有就不下载；那里的坏了就下载一份好的，并说脚本会先用到坏的；第二次不再下载。"""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thing.bin").write_bytes(CONTENT)
    monkeypatch.setenv("LLM_DATA_DIR", str(tmp_path / "mine"))
    code, out, _ = run("good")
    assert code == 0 and str(tmp_path / "mine") in out and server.seen == []
    (tmp_path / "thing.bin").write_bytes(CONTENT)
    out = run("good", args=["--list", "thing"])[1]
    assert str(tmp_path / "mine" / "thing.bin") in out and str(tmp_path / "thing.bin") not in out  # 脚本先用到的那个
    (tmp_path / "thing.bin").unlink()
    (tmp_path / "mine" / "thing.bin").write_bytes(CONTENT[::-1])
    for asked in (1, 0):
        code, out, _ = run("good")
        assert code == 0 and "请删掉" in out and len(server.seen) == asked
    assert (tmp_path / "mine" / "thing.bin").read_bytes() == CONTENT[::-1]


def test_bad_copy_stays_until_a_good_one_is_there(run, tmp_path):
    (tmp_path / "thing.bin").write_bytes(b"old")
    assert run("wrong-bytes")[0] == 2
    assert (tmp_path / "thing.bin").read_bytes() == b"old"


def test_mirror_goes_first(run, server):
    assert run("wrong-bytes", "good", args=["thing", "--mirror", "good"])[0] == 0
    assert [kind for kind, _ in server.seen] == ["good"]


def test_mirrors_in_order(run, server):
    assert run("404", "wrong-bytes", "good", "no-range")[0] == 0
    assert [kind for kind, _ in server.seen] == ["404", "wrong-bytes", "good"]


def test_the_same_reason_is_said_once(run):
    """断网的时候，几个镜像、几份文件的原因都一样：并在一起说一次。"""
    code, _, err = run("404", "404-too", args=["thing", "unknown-size"], ROUNDS=1)
    assert code == 2 and err.count("HTTP 404") == 1
    assert "thing.bin、unknown.bin 没有下载成功（404、404-too " in err


def test_several_names(run, tmp_path):
    """一份不成，别的照样下载；最后说哪份不成。"""
    code, _, err = run("zip", args=["thing", "spam", "thing"])
    assert code == 2 and "thing.bin" in err and "spam.tsv" not in err
    assert_done(tmp_path, "spam.tsv", TEXT)
    (tmp_path / "spam.tsv").unlink()
    assert run("good", "zip", args=["all"])[0] == 0
    assert names(tmp_path) == ["spam.tsv", "thing.bin", "unknown.bin"]


@pytest.mark.parametrize(
    "args",
    [["nosuch"], ["thing", "nosuch"], ["thing", "--mirror", "nosuch"], ["thing", "--base-url", "ftp://x"], ["thing", "--base-url", "file:///etc"], ["thing", "--base-url", ""],
     ["thing", "--from-file", "no/such/file"], ["thing", "spam", "--from-file", "x"], ["--from-file", "x"], ["--mirror", "good"], ["--base-url", "http://127.0.0.1"], ["--nosuch"],
     ["thing", "--mirror"], ["thing", "--mirror", "good", "--base-url", "http://127.0.0.1"], ["all", "--from-file", "x"], ["thing", "--verify", "--mirror", "good"]],
)  # fmt: skip
def test_bad_arguments(run, tmp_path, server, args):
    assert run("good", args=args)[0] == 2
    assert names(tmp_path) == [] and server.seen == []


def test_base_url(run, tmp_path, server):
    base = f"http://127.0.0.1:{server.server_address[1]}/good/"
    assert run("404", args=["thing", "--base-url", base])[0] == 0
    assert server.paths == ["/good/thing.bin"]
    assert_done(tmp_path)
    (tmp_path / "thing.bin").unlink()
    base = f"http://127.0.0.1:{server.server_address[1]}/plain"  # 短信数据在同学那里是解开了的
    assert run("404", args=["spam", "--base-url", base])[0] == 0
    assert_done(tmp_path, "spam.tsv", TEXT)
    assert "连不上" in run("good", args=["thing", "--base-url", "http://127.0.0.1:port/"], ROUNDS=1)[2]


def test_base_url_of_python_http_server(run, tmp_path):
    """文档里写的用法：同学运行 python -m http.server（它不会续传）。"""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "thing.bin").write_bytes(CONTENT)
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *args: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(tmp_path / "shared"))) as other:
        thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            (tmp_path / "thing.bin.part").write_bytes(CONTENT[:100_000])
            assert run("404", args=["thing", "--base-url", f"http://127.0.0.1:{other.server_address[1]}"])[0] == 0
            assert (tmp_path / "thing.bin").read_bytes() == CONTENT
            code, _, err = run("404", args=["spam", "--base-url", f"http://127.0.0.1:{other.server_address[1]}"])
            assert code == 2 and "404" in err
        finally:
            other.shutdown()
            thread.join()


def test_from_file(run, tmp_path, server):
    mine = tmp_path / "mine"
    mine.mkdir()
    good = {"good.bin": ("thing", CONTENT), "spam.zip": ("spam", zipped("SMSSpamCollection", TEXT)), "spam.tsv": ("spam", TEXT)}
    bad = {"short.bin": ("thing", CONTENT[:-1]), "wrong.bin": ("thing", CONTENT[::-1]), "empty.bin": ("thing", b""), "page.html": ("spam", b"<html>"), "x.zip": ("spam", zipped("x", TEXT))}
    for file, (name, content) in (good | bad).items():
        (mine / file).write_bytes(content)
        code, _, err = run("good", args=[name, "--from-file", mine / file])
        assert code == (0 if file in good else 2), (file, err)
        assert (mine / file).read_bytes() == content and server.seen == []  # 自己的那份不动，也不上网
        assert [left for left in names(tmp_path) if not left.startswith("mine")] == ([{"thing": "thing.bin", "spam": "spam.tsv"}[name]] if file in good else [])
        if file in good:
            final = tmp_path / {"thing": "thing.bin", "spam": "spam.tsv"}[name]
            assert final.read_bytes() == {"thing": CONTENT, "spam": TEXT}[name]
            final.unlink()
    assert run("good", args=["thing", "--from-file", mine])[0] == 2


def test_no_room_and_no_permission(run, tmp_path, monkeypatch):
    usage = types.SimpleNamespace(disk_usage=lambda path: types.SimpleNamespace(free=1000))
    code, _, err = run("good", "no-range", shutil=usage)
    assert code == 2 and "磁盘满了" in err and names(tmp_path) == []

    def refuse(path, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    code, _, err = run("good", "no-range", open=refuse)
    assert code == 2 and "没有权限" in err and names(tmp_path) == []
    (tmp_path / "file").write_text("我是一个文件", encoding="utf-8")
    assert run("good", DOWNLOADS=tmp_path / "file")[0] == 2


@posix
def test_read_only_folder(run, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root 不受权限约束")
    (tmp_path / "locked").mkdir(mode=0o555)
    code, _, err = run("good", DOWNLOADS=tmp_path / "locked")
    assert code == 2 and "没有权限" in err


# ── 锁 ──


def test_lock_on_windows(tmp_path, monkeypatch, capsys):
    """没有 fcntl 的系统上用 msvcrt：别人锁着就等，松开了就拿到。"""
    answers = [PermissionError(errno.EACCES, "locked"), OSError(errno.EDEADLK, "locked"), None]

    def locking(descriptor, mode, length):
        assert (mode, length) == (2, 1)
        if answer := answers.pop(0):
            raise answer

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=2))
    load(tmp_path).lock(tmp_path / "x.lock").close()
    assert answers == [] and capsys.readouterr().out.count("另一个进程正在下载") == 1


@posix
def test_disk_without_locks(run, tmp_path, server):
    def flock(*args):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    assert run("good", fcntl=types.SimpleNamespace(flock=flock, LOCK_EX=2, LOCK_NB=4))[0] == 2
    assert names(tmp_path) == [] and server.seen == []


# ── 另一个进程 ──


DRIVER = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("helper", sys.argv[1])
helper = importlib.util.module_from_spec(spec)
spec.loader.exec_module(helper)
folder, port, kinds, limit = sys.argv[2:6]
if int(limit):
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
module = helper.load(folder, int(port), kinds.split(","), TIMEOUT=5)
sys.argv = ["download.py", *sys.argv[6:]]
module.main()
"""


def start(server, folder, kinds, *args, limit=0, stderr=subprocess.PIPE, **env):
    env = {key: value for key, value in os.environ.items() if key != "LLM_DATA_DIR"} | {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1", "PYTHONIOENCODING": "utf-8"} | env
    command = [sys.executable, "-c", DRIVER, __file__, str(folder), str(server.server_address[1]), kinds, str(limit), *(args or ["thing"])]
    # 在后台启动整套测试时，shell 会让它们都不理 Ctrl+C；这里恢复，否则送去的信号没有人听。
    listen = None if os.name == "nt" else lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, encoding="utf-8", env=env, preexec_fn=listen)


def finish(process):
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in (err or ""), err
    return process.returncode, out, err


def wait_for(path, size, process):
    for _ in range(2000):
        if path.exists() and path.stat().st_size >= size:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError(f"{path} 没有长到 {size} 字节")


@posix
def test_kill_9_then_resume(server, tmp_path):
    """下到一半 kill -9，两次；最后接着下完，逐字节相同，总共发的不到两份。"""
    for size in (60_000, 140_000):
        process = start(server, tmp_path, "slow")
        wait_for(tmp_path / "thing.bin.part", size, process)
        process.kill()
        finish(process)
        assert not (tmp_path / "thing.bin").exists()
    half = (tmp_path / "thing.bin.part").stat().st_size
    assert half >= 140_000 and (tmp_path / "thing.bin.part").read_bytes() == CONTENT[:half]
    code, _, err = finish(start(server, tmp_path, "slow"))
    assert code == 0 and err == ""
    assert server.seen[0] == ("slow", None) and server.seen[-1] == ("slow", f"bytes={half}-")
    assert len(CONTENT) <= sum(count for [count] in server.sent) < 2 * len(CONTENT)
    assert_done(tmp_path)


@posix
def test_full_disk(server, tmp_path):
    """写到一半磁盘满了：一句中文，正式的名字下没有半个文件，也不去麻烦别的镜像；腾出地方接着下。"""
    code, _, err = finish(start(server, tmp_path, "good,no-range", limit=200_000))
    assert code == 2 and err.count("\n") == 1 and "磁盘满了" in err
    assert names(tmp_path) == ["thing.bin.part"] and len(server.seen) == 1
    assert (tmp_path / "thing.bin.part").read_bytes() == CONTENT[:200_000]
    code, _, _ = finish(start(server, tmp_path, "good"))
    assert code == 0 and server.seen[-1] == ("good", "bytes=200000-")
    assert_done(tmp_path)

    mine = tmp_path / "mine.bin"
    (tmp_path / "thing.bin").rename(mine)
    code, _, err = finish(start(server, tmp_path, "good", "thing", "--from-file", str(mine), limit=200_000))
    assert code == 2 and err.count("\n") == 1 and "磁盘满了" in err and names(tmp_path) == ["mine.bin"]


def test_two_at_once(server, tmp_path):
    """两个进程同时下同一份：一个下载，另一个等它，都成功，文件只下了一遍。"""
    processes = [start(server, tmp_path, "slow") for _ in range(2)]
    results = [finish(process) for process in processes]
    assert [code for code, *_ in results] == [0, 0]
    assert len(server.seen) == 1 and sum("已有" in out for _, out, _ in results) == 1
    assert sum("另一个进程正在下载" in out for _, out, _ in results) == 1
    assert_done(tmp_path)


@posix
def test_lock_of_a_killed_process(server, tmp_path):
    """下载的那个被 kill -9，等着的立刻接手，从它断的地方接着下。"""
    first = start(server, tmp_path, "slow")
    wait_for(tmp_path / "thing.bin.part", 60_000, first)
    second = start(server, tmp_path, "slow")
    while "另一个进程正在下载" not in second.stdout.readline():
        assert second.poll() is None
    first.kill()
    finish(first)
    code, _, _ = finish(second)
    assert code == 0 and len(server.seen) == 2 and server.seen[1][1].startswith("bytes=")
    assert_done(tmp_path)


@posix
def test_ctrl_c(server, tmp_path):
    process = start(server, tmp_path, "slow")
    wait_for(tmp_path / "thing.bin.part", 60_000, process)
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130 and err.strip().count("\n") == 0 and "接着下" in err
    assert names(tmp_path) == ["thing.bin.part"]


def test_proxy_from_the_environment(server, tmp_path):
    """HTTP_PROXY 指的代理真的被用上：网址上的主机并不存在，请求到了代理这里。"""
    proxy = f"http://127.0.0.1:{server.server_address[1]}"
    args = ["thing", "--base-url", "http://no-such-host.invalid/good"]
    code, _, err = finish(start(server, tmp_path, "404", *args, http_proxy=proxy, HTTP_PROXY=proxy, no_proxy="", NO_PROXY=""))
    assert code == 0, err
    assert server.paths == ["http://no-such-host.invalid/good/thing.bin"]
    assert_done(tmp_path)


@pytest.fixture
def no_proxies(monkeypatch):
    """这台机器上自己设的代理，先都拿掉。"""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("given", [["http_proxy"], ["HTTP_PROXY"], ["http_proxy", "HTTP_PROXY"]], ids="、".join)
def test_dead_proxy_is_named(server, tmp_path, no_proxies, given):
    """代理设了，却没有开：一句中文，说出是哪个环境变量，不说密码，也不一遍遍地试；下好的一半还在。"""
    port = closed_port()
    (tmp_path / "thing.bin.part").write_bytes(CONTENT[:100_000])
    proxies = dict.fromkeys(given, f"http://user:secret@127.0.0.1:{port}")
    code, out, err = finish(start(server, tmp_path, "404", "thing", "--base-url", "http://no-such-host.invalid/good", **proxies))
    assert code == 2 and err.count("\n") == 1 and f"环境变量 {given[0]} 设的代理 127.0.0.1:{port} 连不上" in err and "打开代理软件" in err, err
    assert "secret" not in out + err and "要走代理就设" not in err and "再试" not in out
    assert server.seen == [] and (tmp_path / "thing.bin.part").stat().st_size == 100_000


def test_dead_proxy_is_not_blamed_for_others(server, tmp_path, no_proxies):
    """no_proxy 里的主机不走代理，照样下得成；代理开着，断了就不怪它；别的协议的代理也不相干。"""
    dead, live = f"http://127.0.0.1:{closed_port()}", f"http://127.0.0.1:{server.server_address[1]}"
    code, _, err = finish(start(server, tmp_path, "good", http_proxy=dead))
    assert code == 0, err
    (tmp_path / "thing.bin").unlink()
    args = ["thing", "--base-url", "http://no-such-host.invalid/hang-up"]
    code, _, err = finish(start(server, tmp_path, "404", *args, http_proxy=live))
    assert code == 2 and "设的代理" not in err and "要走代理就设环境变量 HTTPS_PROXY" in err, err
    code, _, err = finish(start(server, tmp_path, "404", *args, https_proxy=dead))
    assert code == 2 and "设的代理" not in err, err


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:99999", "http://127.0.0.1:abc", "http://[::1", "http://", "http://no-such-host.invalid:1", "127.0.0.1:1"])
def test_proxy_written_wrong(tmp_path, no_proxies, monkeypatch, proxy):
    """代理的网址写错了、主机不存在、没有写 http://：都算在它头上，不抛异常。"""
    monkeypatch.setenv("https_proxy", proxy)
    assert "环境变量 https_proxy 设的代理" in load(tmp_path, 1, ["good"]).find_dead_proxy("https://example.com/a")
    assert load(tmp_path, 1, ["good"]).find_dead_proxy("http://example.com/a") == ""


@posix
def test_progress_bar(server, tmp_path):
    """在真正的终端里，进度条上有大小、速度和剩余时间。"""
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = start(server, tmp_path, "slow", stderr=theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # 子进程结束后，读终端会报 EIO
        while block := os.read(ours, 1 << 16):
            shown += block
    os.close(ours)
    assert finish(process)[0] == 0
    assert re.search(r"thing\.bin:\s+\d+%.*\d+k/400k \[\d\d:\d\d<\d\d:\d\d, .*B/s\]", shown.decode()), shown


# ── 真正的清单 ──


def test_the_real_list():
    module = load_real()
    items = module.ITEMS.values()
    assert {"the-verdict.txt", "SMSSpamCollection.tsv", "instruction-data.json", "instruction-data-with-preference.json"} < {item.file for item in items}
    assert {f"gpt2-{size}.safetensors" for size in ("124M", "355M", "774M", "1558M")} | {"tiktoken/6c7ea1a7e38e3a7f062df639a5b80947f075ffe6", "tiktoken/6d1cbeee0f20b3d9449abfede4726ed8212e3aee"} < {item.file for item in items}
    assert len({item.file for item in items}) == len({item.sha256 for item in items}) == len(items)
    for item in items:
        assert re.fullmatch(r"[0-9a-f]{64}", item.sha256) and len(item.urls) >= 2
        assert all(re.fullmatch(r"https://[\w.-]+/\S+", url) for url in item.urls.values())
        assert all(host not in url for host in ("pypi", "pythonhosted", "/simple") for url in item.urls.values())  # 这里只有数据的网址
    assert module.ITEMS["gpt2-124M"].size == 548_105_171
    assert {mirror for item in items for mirror in item.urls} >= {"huggingface", "hf-mirror", "modelscope", "github", "uci"}


def test_groups(monkeypatch, tmp_path, call):
    """GPT-2 的任何一种都带上词表；all 不含三份大权重；--help 里写着。"""
    module = load_real()
    monkeypatch.delenv("LLM_DATA_DIR", raising=False)
    asked = []
    module.DOWNLOADS, module.get = tmp_path, lambda item, args: asked.append(item.file) or ""
    tokenizer = ["tiktoken/6c7ea1a7e38e3a7f062df639a5b80947f075ffe6", "tiktoken/6d1cbeee0f20b3d9449abfede4726ed8212e3aee"]
    for size in ("124M", "355M", "774M", "1558M"):
        asked.clear()
        assert call(module, f"gpt2-{size}")[0] == 0
        assert sorted(asked) == sorted([f"gpt2-{size}.safetensors", *tokenizer])
    asked.clear()
    assert call(module, "gpt2-tokenizer")[0] == 0 and asked == tokenizer
    asked.clear()
    assert call(module, "all")[0] == 0
    assert {item.file for item in module.ITEMS.values()} - set(asked) == {f"gpt2-{size}.safetensors" for size in ("355M", "774M", "1558M")}
    asked.clear()
    assert call(module, "gpt2-124M", "--from-file", "x")[0] == 0 and asked == ["gpt2-124M.safetensors"]
    assert call(module, "the-verdict", "--mirror", "hf-mirror")[0] == 2
    out = "".join(call(module, "--help")[1].split())
    assert "gpt2-355M、gpt2-774M、gpt2-1558M以外" in out and "0.65GB" in out


@pytest.mark.skipif(not (BOOK / "SHA256SUMS").is_file(), reason="没有原书的数据：请让 LLM_DATA_DIR 指向它所在的文件夹")
def test_digests_are_those_of_the_book(tmp_path, monkeypatch, call):
    sums = dict(line.split("  ./") for line in (BOOK / "SHA256SUMS").read_text(encoding="utf-8").splitlines())
    module = load_real()
    module.DOWNLOADS = tmp_path
    checked = [item for item in module.ITEMS.values() if item.sha256 in sums]  # 词表在我们这里换了文件名，所以按校验和找
    assert len(checked) == 6
    for item in checked:
        assert item.size == (BOOK / sums[item.sha256]).stat().st_size
    code, out, _ = call(module, "--verify")
    assert code == 0 and out.count("✓") >= 4
    # 短信数据：把原书的包成 zip，与 UCI 上的一样，也放得好
    (tmp_path / "sms.zip").write_bytes(zipped("SMSSpamCollection", (BOOK / "SMSSpamCollection.tsv").read_bytes()))
    assert call(module, "sms-spam", "--from-file", tmp_path / "sms.zip")[0] == 0
    assert (tmp_path / "SMSSpamCollection.tsv").read_bytes() == (BOOK / "SMSSpamCollection.tsv").read_bytes()
