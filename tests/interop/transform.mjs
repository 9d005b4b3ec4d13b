// Codecs with a transform: section 11 of docs/format.md.

const EDGES = [1, 3, 5, 8, 12, 17, 24]
const NONE = 255

const range = (n) => Array.from({ length: n }, (_, i) => i)

// The tensors of one quality of a ladder, and its content.
export function cut(tensors, content, rate) {
  const { steps, layout, basis, norms, sizes, minimum, weights, shifts, ...kept } = tensors
  const [, components, columns] = layout.shape
  const channels = basis.shape[1]
  const own = layout.data.subarray(rate * components * columns, (rate + 1) * components * columns)
  const coded = range(components).filter((k) => own.subarray(k * columns, (k + 1) * columns).some((t) => t !== NONE))
  const rows = coded.length ? coded : [0] // a codec has one component and one table at least
  const cells = rows.flatMap((k) => [...own.subarray(k * columns, (k + 1) * columns)])
  const found = [...new Set(cells)].filter((t) => t !== NONE).sort((a, b) => a - b)
  const used = found.length ? found : [0]
  const starts = [0]
  sizes.data.forEach((size) => starts.push(starts.at(-1) + size))
  const pick = (tensor, values, shape) => ({ type: tensor.type, data: tensor.data.constructor.from(values), shape })
  const some = (tensor) => pick(tensor, used.map((t) => tensor.data[t]), [used.length])
  const entries = used.flatMap((t) => [...weights.data.subarray(starts[t], starts[t + 1])])
  return {
    tensors: {
      ...kept,
      layout: pick(layout, cells.map((t) => (t === NONE ? NONE : used.indexOf(t))), [rows.length, columns]),
      basis: pick(basis, rows.flatMap((k) => [...basis.data.subarray(k * channels, (k + 1) * channels)]), [rows.length, channels]),
      norms: pick(norms, rows.map((k) => norms.data[k]), [rows.length]),
      sizes: some(sizes),
      minimum: some(minimum),
      shifts: some(shifts),
      weights: pick(weights, entries, [entries.length]),
      step: pick(steps, [steps.data[rate]], [1]),
    },
    content: { ...content, rate_index: rate, transform: content.transform.replace('-ladder', '') },
  }
}

const parts = (side) => {
  const count = Math.floor((side + 15) / 16)
  return range(count).map((p) => Math.floor(side / count) + (p < side % count ? 1 : 0))
}

// Every block of a grid: its sides, and the tokens at its places, row by row.
function* blocks(height, width) {
  let top = 0
  for (const h of parts(height)) {
    let left = 0
    for (const w of parts(width)) {
      yield { h, w, tokens: range(h * w).map((n) => (top + Math.floor(n / w)) * width + left + n % w) }
      left += w
    }
    top += h
  }
}

// The column of the layout for every token, class token first if there is one.
function columnsOf(codec, height, width) {
  const found = new Array(height * width).fill(0)
  if (codec.content.transform === 'klt-dct') {
    for (const { h, w, tokens } of blocks(height, width)) {
      tokens.forEach((token, n) => {
        const [i, j] = [Math.floor(n / w), n % w]
        const f = 1024 * ((i * w) ** 2 + (j * h) ** 2)
        const band = EDGES.filter((e) => f >= (e * h * w) ** 2).length
        found[token] = f ? Math.max(band, 1) : 0
      })
    }
  }
  return codec.class_mean ? [8, ...found] : found
}

// The table of every symbol, token by token and component by component.
export function tablesOf(codec, height, width) {
  const width_ = codec.shapes.layout[1], components = codec.shapes.layout[0]
  return columnsOf(codec, height, width).flatMap((column) => range(components).map((k) => codec.layout[k * width_ + column]))
}

// Symbols [n, K] to floats [n, D].
export function floats(codec, q, height, width) {
  const [components, channels] = codec.shapes.basis
  const tables = tablesOf(codec, height, width)
  const c = Array.from(q, (v, at) => (v ? Math.fround(Math.fround(v - Math.sign(v) * codec.shifts[tables[at]]) * codec.step[0]) : 0))
  const first = codec.class_mean ? 1 : 0
  if (codec.content.transform === 'klt-dct') {
    const cosine = (n, i, x) => Math.sqrt((i ? 2 : 1) / n) * Math.cos(Math.PI * i * (2 * x + 1) / (2 * n))
    for (const { h, w, tokens } of blocks(height, width)) {
      for (let k = 0; k < components; k++) {
        const own = tokens.map((token) => c[(first + token) * components + k])
        tokens.forEach((token, n) => {
          const [y, x] = [Math.floor(n / w), n % w]
          let sum = 0
          own.forEach((value, m) => { if (value) sum += value * cosine(h, Math.floor(m / w), y) * cosine(w, m % w, x) })
          c[(first + token) * components + k] = sum
        })
      }
    }
  }
  const y = new Float32Array(q.length / components * channels)
  for (let token = 0; token < q.length / components; token++) {
    const [mean, scale] = token < first ? [codec.class_mean, codec.class_scale] : [codec.mean, codec.scale]
    for (let d = 0; d < channels; d++) {
      let sum = mean[d]
      for (let k = 0; k < components; k++) sum += c[token * components + k] * codec.basis[k * channels + d] * codec.norms[k] * scale[d]
      y[token * channels + d] = sum
    }
  }
  return y
}
