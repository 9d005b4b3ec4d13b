// Refiners: section 12 of docs/format.md.

const range = (n) => Array.from({ length: n }, (_, i) => i)
const fail = (what) => { throw new Error(what) }

// The numbers of a tensor of type F16, given its 16-bit words.
function halves(words) {
  return Float32Array.from(words, (word) => {
    const sign = word & 0x8000 ? -1 : 1
    const exponent = (word >> 10) & 31, fraction = word & 1023
    if (exponent === 31) return fraction ? NaN : sign * Infinity
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024))
  })
}

// Embeddings [n, D], class token first, refined for the codec that decoded them.
export function refine({ tensors, content }, codec, y, height, width) {
  if (!('codecs' in content)) fail('not a refiner file')
  const r = content.codecs[codec.fingerprint]
  if (!(r >= 0)) fail('a refiner of another codec')
  const w = {}
  for (const [name, { type, data }] of Object.entries(tensors)) w[name] = type === 'float16' ? halves(data) : data
  const [channels, all] = tensors.basis.shape
  const [, around, hidden] = tensors.context.shape
  const [seen, predicted] = [w.inputs[r], w.outputs[r]]
  const near = Math.min(seen, around)
  const first = y.length / channels - height * width
  const u = range(height * width).map((t) =>
    range(channels).map((d) => (y[(first + t) * channels + d] - w.mean[d]) / w.scale[d]))
  const c = u.map((token) =>
    range(seen).map((i) => token.reduce((sum, value, d) => sum + value * w.basis[d * all + i], 0)))
  const meansAround = (t, radius) => {
    const [row, column] = [Math.floor(t / width), t % width]
    const those = c.filter((_, s) =>
      Math.abs(Math.floor(s / width) - row) <= radius && Math.abs(s % width - column) <= radius)
    return range(near).map((i) => those.reduce((sum, one) => sum + one[i], 0) / those.length)
  }
  const result = Float32Array.from(y)
  for (const t of range(height * width)) {
    const m = [meansAround(t, 1), meansAround(t, 7)]
    const h = range(hidden).map((j) => {
      let sum = w.bias[r * hidden + j]
      c[t].forEach((value, i) => { sum += value * w.token[i * hidden + j] })
      m.forEach((means, a) => means.forEach((value, i) => {
        sum += value * w.context[(a * around + i) * hidden + j]
      }))
      return Math.max(0, sum)
    })
    const p = range(predicted).map((i) =>
      h.reduce((sum, value, j) => sum + value * w.out[j * all + i], w.offset[i]))
    for (const d of range(channels)) {
      const change = p.reduce((sum, value, i) => sum + value * w.basis[d * all + i], 0)
      result[(first + t) * channels + d] += w.gains[r] * w.scale[d] * change
    }
  }
  return result
}
