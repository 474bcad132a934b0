"""Attention of every query to itself and to one interval of keys: the Triton kernels, forward and backward.

Shapes: B batch, H query heads, G = H / Hk of them per key head, S cells, N keys, D head dim. Queries stand in the order
of the index, class by class; ``cells[i]`` is where query i is in the caller's tensors. Keys and values are compacted:
position n is the n-th key. Both intervals of the index are monotone, so what a tile of queries sees is one stretch of
keys, of which the middle is seen by every query:

    first lo ─── last lo ═══════════════ first hi ─── last hi
           masked          no mask             masked

Tensor descriptors load what loops go over: bulk copies on Hopper and later, ordinary loads before. Outside a tensor
they read zeros. Nothing is written by two programs, so results do not depend on who was first.

The softmax is the online one (Milakov and Gimelshein, 2018), in base 2, seeded with the query's own key: m = q·kᵢ,
l = 1, acc = vᵢ. So m is finite from the start, and a query that sees nothing else needs no special case. The backward
recomputes probabilities from the stored log-sum-exp and uses delta = Σ o·do (Dao, FlashAttention-2, 2023).
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
from __future__ import annotations

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _stretches(begin, full_begin, full_end, end, BLOCK: tl.constexpr):
    """How the stretch from begin to end falls into tiles.

    Between full_begin and full_end no mask is needed. Returns where whole tiles without a mask end, how many masked
    tiles stand before full_begin, and how many masked tiles there are in all.
    """
    full_end = full_begin + tl.maximum(full_end - full_begin, 0) // BLOCK * BLOCK
    before = tl.cdiv(full_begin - begin, BLOCK)
    return full_end, before, before + tl.cdiv(end - full_end, BLOCK)


@triton.jit
def _head(base, b, h, stride_b, stride_h):
    """The matrix [S, D] of one head, out of [B, H, S, D]."""
    return base + b.to(tl.int64) * stride_b + h.to(tl.int64) * stride_h


@triton.jit
def _rows(base, cell, stride, valid, D: tl.constexpr):
    """The rows ``cell`` of a matrix [S, D] with contiguous rows; zeros where not valid."""
    dim = tl.arange(0, D)
    return tl.load(base + cell.to(tl.int64)[:, None] * stride + dim[None, :], mask=valid[:, None], other=0.0)


@triton.jit
def _put_rows(base, cell, stride, valid, value, D: tl.constexpr):
    """Write rows ``cell`` of a matrix [S, D] with contiguous rows."""
    dim = tl.arange(0, D)
    at = base + cell.to(tl.int64)[:, None] * stride + dim[None, :]
    tl.store(at, value.to(base.dtype.element_ty), mask=valid[:, None])


@triton.jit
def _tile(descriptor, b, h, n, BLOCK: tl.constexpr, D: tl.constexpr):
    """Rows n to n + BLOCK of head h of sequence b, out of [B, H, N, D]."""
    return descriptor.load([b, h, n, 0]).reshape(BLOCK, D)


@triton.jit
def _numbers(descriptor, b, h, n, BLOCK: tl.constexpr):
    """Numbers n to n + BLOCK of head h of sequence b, out of [B, H, N]."""
    return descriptor.load([b, h, n]).reshape(BLOCK)


@triton.jit
def _attend(q, k, v, acc, m, total, seen, scale, MASKED: tl.constexpr, PRECISION: tl.constexpr):
    """One step of the online softmax; m and scale in units of log 2. The scale is positive, so max and it commute."""
    s = tl.dot(q, k.T, input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
    if MASKED:
        s = tl.where(seen, s, float("-inf"))
    m_new = tl.maximum(m, tl.max(s, 1) * scale)
    p = tl.exp2(s * scale - m_new[:, None])
    shrink = tl.exp2(m - m_new)
    total = total * shrink + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    return acc, m_new, total


@triton.jit
def forward(
    q, k, v, keys, values, out, lse, cells, lo, hi, scale,
    q_b, q_h, q_s, k_b, k_h, k_s, v_b, v_h, v_s, o_b, o_h, o_s,
    H, G, S,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out[b, h, cells[i]] and lse[b, h, cells[i]] (natural logarithm) of BLOCK_M queries i of one head.

    q, out [B, H, S, D] and k, v [B, Hk, S, D] by strides; keys, values: descriptors [B, Hk, N, D]; lse [B, H, S].
    """
    b = tl.program_id(2)
    h = tl.program_id(1)
    hk = h // G
    # Later queries see more keys: they go first, so that the last programs to run are short ones.
    i = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = i < S
    cell = tl.load(cells + i, mask=valid, other=0)
    first = tl.load(lo + tl.minimum(i, S - 1))
    behind = tl.load(hi + tl.minimum(i, S - 1))

    q_tile = _rows(_head(q, b, h, q_b, q_h), cell, q_s, valid, D)
    own_k = _rows(_head(k, b, hk, k_b, k_h), cell, k_s, valid, D)
    scale *= LOG2E
    m = tl.sum(q_tile.to(tl.float32) * own_k.to(tl.float32), 1) * scale
    total = tl.full([BLOCK_M], 1.0, tl.float32)
    acc = _rows(_head(v, b, hk, v_b, v_h), cell, v_s, valid, D).to(tl.float32)

    begin, end = tl.min(first, 0), tl.max(behind, 0)
    full_begin = tl.max(first, 0)
    full_end, before, masked = _stretches(begin, full_begin, tl.min(behind, 0), end, BLOCK_N)
    for t in range(masked):
        n = tl.where(t < before, begin + t * BLOCK_N, full_end + (t - before) * BLOCK_N)
        # Columns are counted from n: compared with constants, they take no registers.
        key = tl.arange(0, BLOCK_N)
        until = tl.minimum(behind, tl.where(t < before, full_begin, end)) - n
        seen = (key[None, :] >= (first - n)[:, None]) & (key[None, :] < until[:, None])
        k_tile = _tile(keys, b, hk, n, BLOCK_N, D)
        v_tile = _tile(values, b, hk, n, BLOCK_N, D)
        acc, m, total = _attend(q_tile, k_tile, v_tile, acc, m, total, seen, scale, True, PRECISION)
    for n in range(full_begin, full_end, BLOCK_N):
        k_tile = _tile(keys, b, hk, n, BLOCK_N, D)
        v_tile = _tile(values, b, hk, n, BLOCK_N, D)
        acc, m, total = _attend(q_tile, k_tile, v_tile, acc, m, total, None, scale, False, PRECISION)

    # Loaded again: kept, the numbers would take registers in the loops.
    cell = tl.load(cells + i, mask=valid, other=0, volatile=True)
    _put_rows(_head(out, b, h, o_b, o_h), cell, o_s, valid, acc / total[:, None], D)
    tl.store(lse + (b * H + h).to(tl.int64) * S + cell, (m + tl.log2(total)) / LOG2E, mask=valid)


@triton.jit
def own(
    q, k, v, out, d_out, lse, delta, d_k, d_v, scale,
    q_b, q_h, q_s, k_b, k_h, k_s, v_b, v_h, v_s, o_b, o_h, o_s, g_b, g_h, g_s,
    H, G, S,
    D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """What the backward needs of every cell alone: delta [B, H, S], and d_k, d_v [B, Hk, S, D] of the cell as own key.

    The own key stays out of the other kernels' loops over keys: in the dK/dV kernel it costs more registers than there
    are. One program takes BLOCK_M cells of a key head, and all query heads of its group in order.
    """
    b = tl.program_id(2)
    hk = tl.program_id(1)
    cell = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = cell < S
    k_tile = _rows(_head(k, b, hk, k_b, k_h), cell, k_s, valid, D).to(tl.float32)
    v_tile = _rows(_head(v, b, hk, v_b, v_h), cell, v_s, valid, D).to(tl.float32)
    dk = tl.zeros([BLOCK_M, D], tl.float32)
    dv = tl.zeros([BLOCK_M, D], tl.float32)
    for g in range(G):
        h = hk * G + g
        q_tile = _rows(_head(q, b, h, q_b, q_h), cell, q_s, valid, D).to(tl.float32)
        o_tile = _rows(_head(out, b, h, o_b, o_h), cell, o_s, valid, D).to(tl.float32)
        do = _rows(_head(d_out, b, h, g_b, g_h), cell, g_s, valid, D).to(tl.float32)
        at = (b * H + h).to(tl.int64) * S + cell
        d = tl.sum(o_tile * do, 1)
        tl.store(delta + at, d, mask=valid)
        s = tl.sum(q_tile * k_tile, 1) * scale
        p = tl.exp2((s - tl.load(lse + at, mask=valid, other=0.0)) * LOG2E)
        dv += p[:, None] * do
        dk += (p * (tl.sum(do * v_tile, 1) - d) * scale)[:, None] * q_tile
    base = (b * (H // G) + hk).to(tl.int64) * S * D
    _put_rows(d_k + base, cell, D, valid, dk, D)
    _put_rows(d_v + base, cell, D, valid, dv, D)


@triton.jit
def _query_step(q, do, k, v, lse, delta, dq, seen, scale, MASKED: tl.constexpr, PRECISION: tl.constexpr):
    """dq of a tile of queries, before the factor scale, by one tile of keys; lse and scale in units of log 2."""
    p = tl.exp2(tl.dot(q, k.T, input_precision=PRECISION) * scale - lse[:, None])  # [BLOCK_M, BLOCK_N]
    if MASKED:
        p = tl.where(seen, p, 0.0)
    ds = p * (tl.dot(do, v.T, input_precision=PRECISION) - delta[:, None])
    return tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)


@triton.jit
def backward_q(
    q, k, v, d_out, keys, values, lse, delta, d_q, cells, lo, hi, scale,
    q_b, q_h, q_s, k_b, k_h, k_s, v_b, v_h, v_s, g_b, g_h, g_s, d_b, d_h, d_s,
    H, G, S,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """d_q[b, h, cells[i]] of BLOCK_M queries i of one head, own key included."""
    b = tl.program_id(2)
    h = tl.program_id(1)
    hk = h // G
    i = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = i < S
    cell = tl.load(cells + i, mask=valid, other=0)
    first = tl.load(lo + tl.minimum(i, S - 1))
    behind = tl.load(hi + tl.minimum(i, S - 1))

    q_tile = _rows(_head(q, b, h, q_b, q_h), cell, q_s, valid, D)
    do = _rows(_head(d_out, b, h, g_b, g_h), cell, g_s, valid, D)
    at = (b * H + h).to(tl.int64) * S + cell
    lse2 = tl.load(lse + at, mask=valid, other=0.0) * LOG2E
    d = tl.load(delta + at, mask=valid, other=0.0)
    own_k = _rows(_head(k, b, hk, k_b, k_h), cell, k_s, valid, D).to(tl.float32)
    own_v = _rows(_head(v, b, hk, v_b, v_h), cell, v_s, valid, D).to(tl.float32)
    scale2 = scale * LOG2E
    p = tl.exp2(tl.sum(q_tile.to(tl.float32) * own_k, 1) * scale2 - lse2)
    dq = (p * (tl.sum(do.to(tl.float32) * own_v, 1) - d))[:, None] * own_k

    begin, end = tl.min(first, 0), tl.max(behind, 0)
    full_begin = tl.max(first, 0)
    full_end, before, masked = _stretches(begin, full_begin, tl.min(behind, 0), end, BLOCK_N)
    for t in range(masked):
        n = tl.where(t < before, begin + t * BLOCK_N, full_end + (t - before) * BLOCK_N)
        key = n + tl.arange(0, BLOCK_N)
        until = tl.minimum(behind, tl.where(t < before, full_begin, end))
        seen = (key[None, :] >= first[:, None]) & (key[None, :] < until[:, None])
        k_tile = _tile(keys, b, hk, n, BLOCK_N, D)
        v_tile = _tile(values, b, hk, n, BLOCK_N, D)
        dq = _query_step(q_tile, do, k_tile, v_tile, lse2, d, dq, seen, scale2, True, PRECISION)
    for n in range(full_begin, full_end, BLOCK_N):
        k_tile = _tile(keys, b, hk, n, BLOCK_N, D)
        v_tile = _tile(values, b, hk, n, BLOCK_N, D)
        dq = _query_step(q_tile, do, k_tile, v_tile, lse2, d, dq, None, scale2, False, PRECISION)

    _put_rows(_head(d_q, b, h, d_b, d_h), cell, d_s, valid, dq * scale, D)


@triton.jit
def _key_step(k, v, q, do, lse, delta, dk, dv, seen, scale, MASKED: tl.constexpr, PRECISION: tl.constexpr):
    """dk (before the factor scale) and dv of a tile of keys by one tile of queries; scale in units of log 2."""
    p = tl.exp2(tl.dot(k, q.T, input_precision=PRECISION) * scale - lse[None, :] * LOG2E)  # [BLOCK_N, BLOCK_M]
    if MASKED:
        p = tl.where(seen, p, 0.0)
    dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
    ds = p * (tl.dot(v, do.T, input_precision=PRECISION) - delta[None, :])
    dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit(do_not_specialize=["N_BEGIN", "N_END"])  # they change with every sequence: compile once for all
def backward_kv(
    queries, d_outs, lses, deltas, keys, values, d_k, d_v, cells, seen_lo, seen_hi, scale,
    N_BEGIN, N_END, H, G, S,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add to d_k, d_v [B, Hk, S, D] at cells[n] what other cells give to BLOCK_N keys n of one class and one key head.

    queries, d_outs [B, H, S, D], lses, deltas [B, H, S]: descriptors, in the order of the index's queries. Keys N_BEGIN
    to N_END are the class. One program goes through the query heads of its group in order, so that nobody else adds to
    its rows.
    """
    b = tl.program_id(2)
    hk = tl.program_id(1)
    start = N_BEGIN + tl.program_id(0) * BLOCK_N
    n = start + tl.arange(0, BLOCK_N)
    valid = n < N_END
    first = tl.load(seen_lo + tl.minimum(n, N_END - 1))
    behind = tl.load(seen_hi + tl.minimum(n, N_END - 1))
    k_tile = _tile(keys, b, hk, start, BLOCK_N, D)
    v_tile = _tile(values, b, hk, start, BLOCK_N, D)
    scale2 = scale * LOG2E
    dk = tl.zeros([BLOCK_N, D], tl.float32)
    dv = tl.zeros([BLOCK_N, D], tl.float32)

    # Tiles begin at multiples of four queries: bulk copies of lse and delta begin at multiples of 16 bytes.
    begin, end = tl.min(first, 0) // 4 * 4, tl.max(behind, 0)
    full_begin = tl.cdiv(tl.max(first, 0), 4) * 4
    full_end, before, masked = _stretches(begin, full_begin, tl.min(behind, 0), end, BLOCK_M)
    for g in range(G):
        h = hk * G + g
        for m in range(full_begin, full_end, BLOCK_M):
            q_tile = _tile(queries, b, h, m, BLOCK_M, D)
            do = _tile(d_outs, b, h, m, BLOCK_M, D)
            lse = _numbers(lses, b, h, m, BLOCK_M)
            delta = _numbers(deltas, b, h, m, BLOCK_M)
            dk, dv = _key_step(k_tile, v_tile, q_tile, do, lse, delta, dk, dv, None, scale2, False, PRECISION)
        for t in range(masked):
            m = tl.where(t < before, begin + t * BLOCK_M, full_end + (t - before) * BLOCK_M)
            query = m + tl.arange(0, BLOCK_M)
            until = tl.minimum(behind, tl.where(t < before, full_begin, end))
            seen = (query[None, :] >= first[:, None]) & (query[None, :] < until[:, None])
            q_tile = _tile(queries, b, h, m, BLOCK_M, D)
            do = _tile(d_outs, b, h, m, BLOCK_M, D)
            lse = _numbers(lses, b, h, m, BLOCK_M)
            delta = _numbers(deltas, b, h, m, BLOCK_M)
            dk, dv = _key_step(k_tile, v_tile, q_tile, do, lse, delta, dk, dv, seen, scale2, True, PRECISION)

    cell = tl.load(cells + n, mask=valid, other=0)
    base = (b * (H // G) + hk).to(tl.int64) * S * D
    dk = dk * scale + _rows(d_k + base, cell, D, valid, D).to(tl.float32)
    dv += _rows(d_v + base, cell, D, valid, D).to(tl.float32)
    _put_rows(d_k + base, cell, D, valid, dk, D)
    _put_rows(d_v + base, cell, D, valid, dv, D)
