import errno
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
import transform_cases
from coder_cases import Y, laplace_embeddings, small_codec
from folders import TESTS
from refiner_cases import random_refiner

import coder
import coder.pool
from coder.format import blob


@pytest.fixture(scope="module")
def pool():
    with coder.Pool(small_codec(), workers=2) as pool:
        yield pool


def test_a_pool_codes_as_the_codec_does(pool):
    codec = small_codec()
    for images, grid in ((17, (2, 3)), (1, (2, 3)), (40, (4, 4)), (3, (1, 1))):
        y = laplace_embeddings(1, images, grid[0] * grid[1] + 1, np.array([0.1, 1, 30]))
        blobs = pool.encode(y, grid)
        assert blobs == [codec.encode(image, grid) for image in y]
        y_hat = pool.decode(blobs)
        assert y_hat.dtype == np.float32
        np.testing.assert_array_equal(y_hat, [codec.decode(blob) for blob in blobs])


def test_a_pool_refines_as_the_codec_does(monkeypatch):
    codec = transform_cases.ladder(True)
    codec = codec.with_refiner(random_refiner(codec))
    y = transform_cases.embeddings(True, count=9)
    blobs = [codec.encode(one, transform_cases.GRID, quality=k) for k, one in enumerate(y)]
    plain = np.stack([codec.decode(blob) for blob in blobs])
    refined = np.stack([codec.decode(blob, refine=True) for blob in blobs])
    assert not np.array_equal(plain, refined)
    with coder.Pool(codec, workers=2) as many, coder.Pool(codec.with_refiner(None), 1) as bare:
        for _ in range(2):
            np.testing.assert_array_equal(many.decode(blobs, refine=True), refined)
            np.testing.assert_array_equal(many.decode(blobs), plain)
        with pytest.raises(coder.CorruptBlob, match=r"blob 1: .*checksum"):
            many.decode([blobs[0], blobs[1][:-1]], refine=True)
        with pytest.raises(coder.InputError, match=r"^the codec has no refiner"):
            bare.decode(blobs, refine=True)
        with pytest.raises(coder.InputError, match=r"^the codec has no refiner"):
            bare.encode(y, transform_cases.GRID, for_refiner=True)
        chosen = [codec.encode(one, transform_cases.GRID, for_refiner=True) for one in y]
        assert many.encode(y, transform_cases.GRID, for_refiner=True) == chosen != blobs
    monkeypatch.setattr(multiprocessing.current_process(), "_config", {"daemon": True})
    with coder.Pool(codec) as here:
        assert here._executor is None
        np.testing.assert_array_equal(here.decode(blobs, refine=True), refined)


def test_a_pool_says_which_blob_is_damaged_and_goes_on(pool):
    blobs = pool.encode(np.stack([Y] * 9), (1, 2))
    broken = [*blobs[:4], blobs[4][:-1] + b"\0", *blobs[5:]]
    with pytest.raises(coder.CorruptBlob, match=r"blob 4: .*checksum"):
        pool.decode(broken)
    # A frame that is sound around a payload that is not: found by a worker.
    header, words = blob.unpack(blobs[0])
    forged = blob.pack(header, np.append(words, [7, 7]).astype(np.uint32))
    with pytest.raises(coder.CorruptBlob, match="blob 8: damaged payload"):
        pool.decode([*blobs[:8], forged])
    np.testing.assert_array_equal(pool.decode(blobs)[0], small_codec().decode(blobs[0]))


def test_a_pool_refuses_what_is_no_batch(pool):
    with pytest.raises(coder.InputError, match="batch"):
        pool.encode(Y, (1, 2))
    with pytest.raises(coder.InputError, match="NaN"):
        pool.encode(np.full((2, 3, 3), np.nan), (1, 2))
    with pytest.raises(coder.InputError, match="no blobs to decode"):
        pool.decode([])
    other = small_codec().encode(Y[:2], (1, 1))
    with pytest.raises(coder.InputError, match="2 grids"):
        pool.decode([other, small_codec().encode(Y, (1, 2))])


def batch(images, grid, seed=1):
    return laplace_embeddings(seed, images, grid[0] * grid[1] + 1, np.array([0.1, 1, 30]))


def test_threads_share_a_pool(pool):
    codec, grids = small_codec(), [(2, 3), (40, 30), (4, 4), (60, 60)]

    def code(k):
        grid = grids[k % 4]
        y = batch(3 + 2 * k, grid, seed=k)  # batches grow
        blobs = pool.encode(y, grid)
        return y, grid, blobs, pool.decode(blobs)

    with ThreadPoolExecutor(4) as threads:
        for y, grid, blobs, y_hat in threads.map(code, range(16)):
            assert blobs == [codec.encode(image, grid) for image in y]
            np.testing.assert_array_equal(y_hat, [codec.decode(blob) for blob in blobs])


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("missing", ["nothing", "posix_fallocate", "memfd_create"])
def test_memory_that_is_not_there_changes_nothing_but_speed(missing, monkeypatch):
    if missing != "nothing":
        monkeypatch.setattr(os, missing, no_space)
    monkeypatch.setattr(coder.pool, "_BLOCK", 1 << 12)  # smaller than one of the large embeddings
    codec = small_codec()
    with coder.Pool(codec, 2) as pool:
        for grid in ((2, 3), (20, 30), (1, 1)):
            y = batch(37, grid)
            blobs = pool.encode(y, grid)
            assert blobs == [codec.encode(image, grid) for image in y]
            np.testing.assert_array_equal(pool.decode(blobs), [codec.decode(b) for b in blobs])


def test_a_pool_takes_the_numbers_that_its_codec_takes(pool):
    codec, y = small_codec(), batch(5, (2, 3))
    wide = np.zeros((5, 14, 6))
    wide[:, ::2, ::2] = y
    others = [y.astype(dtype) for dtype in ("f2", "f8", ">f4", ml_dtypes.bfloat16)]
    others += [y[::-1], wide[:, ::2, ::2], np.asfortranarray(y)]
    for values in (*others, y.tolist(), list(y), np.ma.array(y)):
        blobs = pool.encode(values, (2, 3))
        assert blobs == [codec.encode(np.asarray(one), (2, 3)) for one in values]
    for dtype in ("i4", "i8", "i1"):
        values = y.astype(dtype)
        with pytest.warns(coder.UnusualEmbedding, match="dequantise them first") as caught:
            blobs = pool.encode(values, (2, 3))
        assert [warning.filename for warning in caught] == [__file__]
        assert blobs == [codec.encode(one.astype("f4"), (2, 3)) for one in values]
    for dtype in (object, bool, complex, "U3"):
        with pytest.raises(coder.InputError, match=r"give floats|not an array of numbers"):
            pool.encode(y.astype(dtype), (2, 3))


def test_masked_values_are_refused(pool):
    y = np.ma.array(batch(3, (1, 1)))
    y[1, 0, 2] = np.ma.masked
    with pytest.raises(coder.InputError, match=r"masked, the first at \(1, 0, 2\)"):
        pool.encode(y, (1, 1))
    with pytest.raises(coder.InputError, match=r"masked, the first at \(1, 0, 2\)"):
        pool.encode(list(y), (1, 1))


def test_a_pool_reads_what_its_codec_reads(pool):
    y = batch(4, (1, 1))
    blobs = pool.encode(y, (1, 1))
    y_hat = pool.decode(blobs)
    for kind in (bytearray, memoryview, lambda b: np.frombuffer(b, np.uint8)):
        np.testing.assert_array_equal(pool.decode([kind(b) for b in blobs]), y_hat)
    np.testing.assert_array_equal(pool.decode(b for b in blobs), y_hat)
    with pytest.raises(coder.InputError, match="wrap a single one in a list"):
        pool.decode(blobs[0])
    with pytest.raises(coder.InputError, match=r"blob 1: a blob is bytes.* not str"):
        pool.decode([blobs[0], "blob"])


def test_errors_name_the_first_embedding_and_a_pool_goes_on(pool):
    y = batch(40, (1, 1))
    spoilt = y.copy()
    spoilt[[7, 31], 0, 0] = np.nan, np.inf
    with pytest.raises(coder.InputError, match=r"embedding 7: 1 of 6 values of embeddings are NaN"):
        pool.encode(spoilt, (1, 1))
    with pytest.raises(coder.InputError, match=r"embedding 0: .*float32"):
        pool.encode(np.full((2, 2, 3), 1e300), (1, 1))
    with pytest.raises(coder.InputError, match="whole numbers"):
        pool.encode(y, (1.0, 1.0))  # type: ignore[arg-type]
    assert pool.encode(y, (1, 1)) == [small_codec().encode(one, (1, 1)) for one in y]


def test_a_ladder_codes_at_its_own_rate_and_warnings_reach_the_caller():
    ladder, grid = transform_cases.ladder(), transform_cases.GRID
    y = transform_cases.embeddings(False)
    with coder.Pool(ladder, 2) as pool:
        assert pool.encode(y, grid) == [ladder.encode(one, grid) for one in y]
        unusual = 30 * y[::-1]
        with pytest.warns(coder.UnusualEmbedding, match="far more bits") as caught:
            blobs = pool.encode(unusual, grid)
        assert [one.filename for one in caught] == [__file__]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(coder.UnusualEmbedding):
                pool.encode(unusual, grid)
            warnings.simplefilter("ignore")
            assert pool.encode(unusual, grid) == blobs


def test_a_pool_of_nonsense_is_refused():
    most = coder.pool.MAX_WORKERS
    for workers in (0, -1, 1.5, True, "2", np.nan, most + 1, 10**9, 2**31 - 1):
        with pytest.raises(coder.InputError, match=f"workers is .*whole number, 1 to {most}"):
            coder.Pool(small_codec(), workers)  # type: ignore[arg-type]
    with pytest.raises(coder.InputError, match=r"pool of a str: .*coder\.load"):
        coder.Pool("nec-vit-ti")  # type: ignore[arg-type]


def test_on_more_cores_than_a_pool_may_have_it_has_as_many_as_it_may(monkeypatch):
    y = batch(2, (1, 1))
    monkeypatch.setattr("coder.pool.available_cores", lambda: 4096)
    with coder.Pool(small_codec()) as pool:
        assert pool.encode(y, (1, 1)) == [small_codec().encode(one, (1, 1)) for one in y]


def test_a_pool_that_cannot_be_used_says_so():
    y = batch(3, (1, 1))
    pool = coder.Pool(small_codec(), 1)  # no `with`
    blobs = pool.encode(y, (1, 1))
    with pytest.raises(coder.PoolError, match=r"send its codec"):
        pickle.dumps(pool)
    pool.close()
    pool.close()
    for call in (lambda: pool.encode(y, (1, 1)), lambda: pool.decode(blobs)):
        with pytest.raises(coder.PoolError, match="closed"):
            call()


def test_closing_a_pool_ends_the_calls_of_other_threads():
    pool, y = coder.Pool(small_codec(), 1), batch(50, (4, 4))
    blobs = pool.encode(y, (4, 4))

    def code():
        while True:
            assert pool.encode(y, (4, 4)) == blobs

    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(code) for _ in range(2)]
        pool.close()
        for call in calls:
            assert isinstance(call.exception(), coder.PoolError)


def test_a_worker_that_dies_is_an_error_that_says_what_to_do():
    before = set(multiprocessing.active_children())
    with coder.Pool(small_codec(), 1) as pool:
        pool.encode(batch(3, (1, 1)), (1, 1))
        for worker in set(multiprocessing.active_children()) - before:
            worker.kill()
        for _ in range(2):
            with pytest.raises(coder.PoolError, match=r"has died: .*make a new pool"):
                pool.encode(batch(3, (1, 1)), (1, 1))


def code_in_a_daemon(connection):
    with coder.Pool(small_codec(), 2) as pool:
        blobs = pool.encode(batch(3, (2, 3)), (2, 3))
        connection.send((blobs, pool.decode(blobs), multiprocessing.active_children()))


def test_a_daemonic_process_codes_by_itself():
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=code_in_a_daemon, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    blobs, y_hat, children = ours.recv()
    process.join()
    codec = small_codec()
    assert not children
    assert blobs == [codec.encode(one, (2, 3)) for one in batch(3, (2, 3))]
    np.testing.assert_array_equal(y_hat, [codec.decode(b) for b in blobs])


START = """
import os, signal, sys, time
import numpy as np
import coder
# Where the tests run in the background, a shell has it ignored, which processes inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
y, grid = np.zeros((8, 6, 12), np.float32), (2, 3)
pool = coder.Pool(coder.load(sys.argv[1]), 2)
blobs = pool.encode(y, grid)
"""
FORK = """
child = os.fork()
if not child:
    try:
        pool.encode(y, grid)
    except coder.PoolError as error:
        print(error, flush=True)
    pool.close()
    os._exit(0)
os.waitpid(child, 0)
print(pool.encode(y, grid) == blobs)
"""
INTERRUPT = """
try:
    os.killpg(0, signal.SIGINT)
    time.sleep(60)
except KeyboardInterrupt:
    print(pool.encode(y, grid) == blobs)
"""
KILL = """
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no signals, no fork")
@pytest.mark.parametrize(
    ("script", "status", "expected"),
    [
        (FORK, 0, "the pool was made by another process: make one in this process\nTrue\n"),
        (INTERRUPT, 0, "True\n"),
        (KILL, -signal.SIGKILL, ""),
    ],
    ids=["fork", "interrupt", "kill"],
)
def test_processes_that_fork_are_interrupted_or_killed(script, status, expected, tmp_path):
    transform_cases.ladder().save(tmp_path / "codec")
    # Their output ends with the last process that has it: no worker outlives the others.
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", START + script, tmp_path / "codec"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (status, expected)


def test_where_there_are_no_semaphores_a_pool_says_so(monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("coder.pool.ProcessPoolExecutor", refuse)
    with pytest.raises(coder.PoolError, match=r"Read-only.*use the codec itself"):
        coder.Pool(small_codec())


def test_a_script_on_standard_input_is_refused_and_why(tmp_path):
    transform_cases.ladder().save(tmp_path / "codec")
    done = subprocess.run(
        [sys.executable, "-", tmp_path / "codec"], input=START, stderr=subprocess.PIPE, text=True
    )
    assert "begins by running the program's script, and <stdin> is not a file" in done.stderr
    assert "FileNotFoundError" not in done.stderr  # of a process that was started all the same


@pytest.mark.parametrize("calls", ["one, later", "one after another"])
def test_a_thread_that_outlives_the_program_is_told(calls, tmp_path):
    program = tmp_path / "late.py"
    program.write_text(
        "import sys, threading, time\nimport numpy as np\nimport coder\n"
        "from coder_cases import small_codec\n"
        "def late():\n"
        "    if sys.argv[1] == 'one, later':\n"
        "        time.sleep(0.5)\n"
        "    try:\n"
        "        while True:\n"
        "            pool.encode(np.zeros((64, 7, 3), 'f4'), (2, 3))\n"
        "            started.set()\n"
        "    except coder.PoolError as error:\n"
        "        print(error, flush=True)\n"
        "if __name__ == '__main__':\n"
        "    pool, started = coder.Pool(small_codec(), 1), threading.Event()\n"
        "    threading.Thread(target=late).start()\n"
        "    if sys.argv[1] == 'one after another':\n"
        "        started.wait()\n"
    )
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, program, calls],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert "the program has ended while a thread codes" in done.stdout, done
