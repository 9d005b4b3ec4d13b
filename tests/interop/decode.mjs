// Decodes a blob to its symbols, from docs/format.md alone: plain JavaScript, no dependency.
//
//     node tests/interop/decode.mjs CODEC.safetensors BLOB OUT.npy [--floats | REFINER.safetensors]

import { createHash } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { refine } from './refine.mjs'
import { cut, floats, tablesOf } from './transform.mjs'

const ONE = 1n << 24n
const fail = (what) => { throw new Error(what) }
const biggest = (list) => list.reduce((best, w, i) => (w > list[best] ? i : best), 0)
const sum = (list) => list.reduce((a, b) => a + b, 0n)
const max1 = (x) => (x > 1n ? x : 1n)

const choose = (n, k) => {
  if (k < 0 || k > n) return 0n
  let c = 1n
  for (let i = 0; i < k; i++) c = c * BigInt(n - i) / BigInt(i + 1)
  return c
}

// Section 6 and 7: files, their digests and fingerprints.
const TYPES = {
  F32: ['float32', Float32Array], I32: ['int32', Int32Array], U32: ['uint32', Uint32Array],
  I8: ['int8', Int8Array], U8: ['uint8', Uint8Array], F16: ['float16', Uint16Array],
}
const sorted = (v) => (v && typeof v === 'object' && !Array.isArray(v))
  ? Object.fromEntries(Object.keys(v).sort().map((key) => [key, sorted(v[key])])) : v
function digest(tensors, text) {
  const names = Object.keys(tensors).sort()
  const shapes = Object.fromEntries(names.map((name) => [name, [tensors[name].type, tensors[name].shape]]))
  const sha = createHash('sha256').update(JSON.stringify([text, shapes]))
  for (const name of names) {
    const { data } = tensors[name]
    sha.update(new Uint8Array(data.buffer, data.byteOffset, data.byteLength))
  }
  return sha.digest('hex')
}
function readFile(path) {
  const file = readFileSync(path)
  const length = Number(file.readBigUInt64LE(0))
  const header = JSON.parse(file.toString('utf8', 8, 8 + length))
  const { sha256, ...record } = JSON.parse(header.__metadata__.nec)
  delete header.__metadata__
  const tensors = {}
  for (const [name, { dtype, shape, data_offsets: offsets }] of Object.entries(header)) {
    const [type, array] = TYPES[dtype]
    const bytes = file.subarray(...offsets.map((offset) => 8 + length + offset))
    tensors[name] = { type, shape, data: new array(new Uint8Array(bytes).buffer) }
  }
  if (digest(tensors, JSON.stringify(sorted(record))) !== sha256) fail(`the ${record.kind} file is damaged`)
  return { tensors, content: record.content }
}
function openCodec({ tensors, content }) {
  if (!['identity', 'klt', 'klt-dct'].includes(content.transform)) fail('unknown transform')
  const codec = { content, shapes: {}, fingerprint: digest(tensors, JSON.stringify(sorted(content))) }
  for (const [name, { data, shape }] of Object.entries(tensors)) {
    codec[name] = data
    codec.shapes[name] = shape
  }
  codec.hasClassToken = 'class_layout' in codec || 'class_mean' in codec
  let start = 0
  codec.tables = Array.from(codec.sizes, (size, k) => {
    const weights = Array.from(codec.weights.subarray(start, start += size), BigInt)
    const mode = biggest(weights.slice(0, -1))
    const event = ONE - weights[mode]
    return { weights, mode, event, size, minimum: codec.minimum[k], sparse: event <= 1n << 19n }
  })
  return codec
}

// Section 1: the frame.
function readBlob(blob, file) {
  const crc = (bytes) => {
    let c = 0xffffffff
    for (const byte of bytes) {
      c ^= byte
      for (let i = 0; i < 8; i++) c = (c >>> 1) ^ (c & 1 ? 0xedb88320 : 0)
    }
    return ~c >>> 0
  }
  if (!blob.length) fail('an empty blob')
  if (blob[0] >> 4 !== 1) fail(`format version ${blob[0] >> 4}`)
  if (blob.length < 12) fail('shorter than any blob')
  const body = blob.subarray(0, -4)
  if (crc(body) !== blob.readUInt32LE(body.length)) fail('wrong checksum')
  if (body[0] & 0xe) fail('unknown mode')
  let at = 5
  const number = () => {
    let value = 0
    for (let i = 0; i < 5; i++) {
      const byte = body[at++] ?? fail('a number that does not end')
      value += (byte & 0x7f) * 2 ** (7 * i)
      if (byte < 0x80) return i && !byte ? fail('a number in a longer form than needed') : value
    }
    return fail('a number that does not end')
  }
  const [rate, height, width] = [number(), number(), number()]
  const payload = body.subarray(at)
  if (payload.length && !payload[payload.length - 1]) fail('the payload ends in zero')
  const ladder = file.content.transform.endsWith('-ladder')
  if (ladder && rate >= file.tensors.steps.shape[0]) fail('another quality')
  const codec = openCodec(ladder ? cut(file.tensors, file.content, rate) : file)
  if (body.toString('hex', 1, 5) !== codec.fingerprint.slice(0, 8)) fail('written with another codec')
  if (rate !== codec.content.rate_index) fail('another quality')
  if ((body[0] & 1) !== Number(codec.hasClassToken)) fail('the class token does not fit the codec')
  if (!height || !width || height * width > codec.content.max_tokens) fail('a grid beyond the bounds')
  const padded = Buffer.concat([payload, Buffer.alloc((4 - payload.length % 4) % 4)])
  const words = []
  for (let i = 0; i < padded.length; i += 4) words.push(BigInt(padded.readUInt32LE(i)))
  return { codec, words, height, width }
}

// Section 2: the entropy coder.
function coder(words) {
  let state = 0n
  const refill = () => { while (state < 1n << 32n && words.length) state = state << 32n | words.pop() }
  refill()
  const take = (z, i, weight, start) => { state = state / ONE * weight + z - start; refill(); return i }
  return {
    read(weights) {
      const z = state % ONE
      let start = 0n, i = 0
      while (start + weights[i] <= z) start += weights[i++]
      return take(z, i, weights[i], start)
    },
    uniform(n) {
      if (n === 1) return 0
      const z = state % ONE, each = ONE / BigInt(n)
      const i = Math.min(Number(z / each), n - 1)
      const start = each * BigInt(i)
      return take(z, i, i === n - 1 ? ONE - start : each, start)
    },
    done: () => state === 0n && !words.length,
  }
}

// Section 3: tables that follow from the stored ones.
function countTable(event, length) {
  const f = Array.from({ length: 15 }, (_, k) => k > length ? 0n : (choose(length, k) * event ** BigInt(k) *
    (ONE - event) ** BigInt(length - k)) >> BigInt(24 * (length - 1)))
  const events = [...f.slice(1).map(max1), max1(ONE - sum(f))]
  return [ONE - sum(events), ...events]
}
function halfTable(length, count, half) {
  const w = Array.from({ length: half + 1 }, (_, i) =>
    max1(choose(half, i) * choose(length - half, count - i) * ONE / choose(length, count)))
  w[biggest(w)] += ONE - sum(w)
  return w
}
function eventTable({ weights, mode, event }) {
  const w = weights.filter((_, i) => i !== mode).map((weight) => weight * ONE / event)
  w[biggest(w)] += ONE - sum(w)
  return w
}
const memo = new Map()
const once = (make, ...key) => {
  const name = `${make.name} ${key}`
  if (!memo.has(name)) memo.set(name, make(...key))
  return memo.get(name)
}

// The rows of every block, and where each of their symbols is in q.
function rowsOf(codec, height, width) {
  const row = (table, places) => ({ table: codec.tables[table], places, symbols: new Int32Array(places.length), events: [] })
  if (codec.content.transform === 'identity') {
    const channels = codec.offsets.length
    const column = (first, tokens, d) => Array.from({ length: tokens }, (_, t) => (first + t) * channels + d)
    const block = (layout, first, tokens) => Array.from(layout, (table, d) => row(table, column(first, tokens, d)))
    const grid = block(codec.grid_layout, Number(codec.hasClassToken), height * width)
    return codec.hasClassToken ? [block(codec.class_layout, 0, 1), grid] : [grid]
  }
  const places = codec.tables.map(() => [])
  tablesOf(codec, height, width).forEach((table, at) => places[table]?.push(at))
  return [places.map((at, table) => row(table, at)).filter(({ symbols }) => symbols.length)]
}

// Section 4: the reading order.
function decode(file, blob) {
  const { codec, words, height, width } = readBlob(blob, file)
  const ans = coder(words)
  const rows = rowsOf(codec, height, width)
  let list = []
  for (const block of rows) {
    const sparse = block.filter((row) => row.table.sparse)
    const segment = (row, at, length) => list.push({ row, at, length, count: ans.read(once(countTable, row.table.event, length)) })
    const rest = ({ symbols }) => symbols.length % 64
    for (const row of sparse) for (let at = 0; at < row.symbols.length - rest(row); at += 64) segment(row, at, 64)
    for (const row of sparse) if (rest(row)) segment(row, row.symbols.length - rest(row), rest(row))
  }
  for (const s of list) if (s.count === 15) s.count += s.length < 15 ? fail('a count above its length') : ans.uniform(s.length - 14)
  if (list.some((s) => s.count > s.length)) fail('a count above its length')
  list = list.filter((s) => s.count)
  for (const half of [32, 16]) {
    const wide = list.filter((s) => s.length > half)
    const first = wide.map((s) => ({ ...s, length: half, count: ans.read(once(halfTable, s.length, s.count, half)) }))
    const second = wide.map((s, i) => ({ row: s.row, at: s.at + half, length: s.length - half, count: s.count - first[i].count }))
    if (second.some((s) => s.count < 0 || s.count > s.length)) fail('a count that its half cannot have')
    list = [...list.filter((s) => s.length <= half), ...first, ...second].filter((s) => s.count)
  }
  for (const { row, at, length, count } of list) {
    let rank = BigInt(ans.uniform(Number(choose(length, count))))
    for (let k = count, p = length - 1; k; k--, p--) {
      while (choose(p, k) > rank) p--
      rank -= choose(p, k)
      row.events.push(at + p)
    }
  }
  const escapes = []
  const put = (row, token, index) => {
    row.symbols[token] = row.table.minimum + index
    if (index === row.table.size - 1) escapes.push([row, token])
  }
  for (const row of rows.flat().filter((r) => r.table.sparse)) {
    row.symbols.fill(row.table.minimum + row.table.mode)
    row.table.rest ??= eventTable(row.table)
    for (const token of row.events.sort((a, b) => a - b)) {
      const index = row.table.rest.length > 1 ? ans.read(row.table.rest) : 0
      put(row, token, index + (index >= row.table.mode ? 1 : 0))
    }
  }
  for (const row of rows.flat().filter((r) => !r.table.sparse)) {
    for (let token = 0; token < row.symbols.length; token++) put(row, token, ans.read(row.table.weights))
  }
  const lengthTable = Array.from({ length: 35 }, (_, k) => (k ? max1((1n << 23n) >> BigInt(k)) : 0n))
  lengthTable[0] = ONE - sum(lengthTable)
  const bits = escapes.map(() => ans.read(lengthTable))
  const values = bits.map((k) => (k ? 1n << BigInt(k - 1) : 0n))
  for (let j = 0; j < 5; j++) {
    for (let n = 1; n <= 8; n++) {
      bits.forEach((k, i) => {
        if (Math.min(8 * j + 8, k - 1) - 8 * j === n) values[i] |= BigInt(ans.uniform(2 ** n)) << BigInt(8 * j)
      })
    }
  }
  if (!ans.done()) fail('the payload does not end where its symbols end')
  escapes.forEach(([{ table, symbols }, token], i) => {
    const far = Number(values[i] / 2n)
    const symbol = values[i] % 2n ? table.minimum + table.size - 1 + far : table.minimum - 1 - far
    if (symbol !== (symbol | 0)) fail('a symbol outside int32')
    symbols[token] = symbol
  })
  const all = rows.flat()
  const tokens = height * width + Number(codec.hasClassToken)
  const q = new Int32Array(tokens * (codec.offsets ? codec.offsets.length : codec.shapes.basis[0]))
  for (const { places, symbols } of all) places.forEach((at, i) => { q[at] = symbols[i] })
  return { codec, height, width, tokens, q }
}

function save(path, type, array, tokens) {
  const shape = `(${tokens}, ${array.length / tokens})`
  let header = `{'descr': '${type}', 'fortran_order': False, 'shape': ${shape}, }`
  header = header.padEnd(128 - 10 - 1) + '\n'
  const start = Buffer.from([0x93, ...Buffer.from('NUMPY'), 1, 0, header.length, 0])
  writeFileSync(path, Buffer.concat([start, Buffer.from(header), Buffer.from(array.buffer)]))
}

try {
  const [codecPath, blobPath, out, wanted] = process.argv.slice(2)
  const { codec, height, width, tokens, q } = decode(readFile(codecPath), readFileSync(blobPath))
  const channels = (codec.offsets ?? codec.mean).length
  // Section 5: each operation rounds to float32.
  const scalar = () => Float32Array.from(q, (v, i) =>
    Math.fround(Math.fround(Math.fround(v) * codec.steps[i % channels]) + codec.offsets[i % channels]))
  const y = () => (codec.offsets ? scalar() : floats(codec, q, height, width))
  if (!wanted) save(out, '<i4', q, tokens)
  else if (wanted === '--floats') save(out, '<f4', y(), tokens)
  else save(out, '<f4', refine(readFile(wanted), codec, y(), height, width), tokens)
  console.log(`grid ${height} x ${width}, ${tokens} tokens, ${channels} channels`)
} catch (error) {
  console.error(`Error: ${error.message}`)
  process.exitCode = 1
}
