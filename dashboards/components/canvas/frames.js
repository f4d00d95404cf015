// Binary frames: how one is read, and one shared poller an address. Nothing here draws.
//
// A frame is "TTF1", a little-endian u32 with the header's length, the header as JSON, then the arrays it lists; each
// array's offset counts from the end of the header. Unknown kinds of arrays are an error, never a guess.

const MAGIC = "TTF1"
const TYPES = {
  u1: [Uint8Array, 1],
  u4: [Uint32Array, 4],
  f4: [Float32Array, 4],
  f8: [Float64Array, 8],
}
const POLL_MS = 1000
const MISSED = 3

export class FrameError extends Error {}

// {header, arrays: {name: {shape, values}}} of an ArrayBuffer; throws FrameError on anything that does not fit.
export function decode(buffer) {
  const bytes = new Uint8Array(buffer)
  if (bytes.length < 8 || String.fromCharCode(...bytes.subarray(0, 4)) !== MAGIC) throw new FrameError("not a frame")
  const length = new DataView(buffer).getUint32(4, true)
  if (8 + length > bytes.length) throw new FrameError("truncated header")
  let header
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(8, 8 + length)))
  } catch {
    throw new FrameError("unreadable header")
  }
  const arrays = {}
  for (const row of header.arrays ?? []) arrays[row.name] = read(buffer, 8 + length, row)
  return { header, arrays }
}

function read(buffer, start, { name, dtype, shape, offset }) {
  if (!TYPES[dtype]) throw new FrameError(`array ${name}: unknown type ${dtype}`)
  const [Kind, size] = TYPES[dtype]
  const count = shape.reduce((product, part) => product * part, 1)
  const from = start + offset
  if (!Number.isInteger(count) || count < 0 || offset < 0 || from + count * size > buffer.byteLength) {
    throw new FrameError(`array ${name}: outside the frame`)
  }
  // An offset that is not a multiple of the size cannot be viewed in place.
  const values = from % size === 0 ? new Kind(buffer, from, count) : new Kind(buffer.slice(from, from + count * size))
  return { shape, values }
}

const pollers = new Map()

// Call `listen({frame, missed, skew})` for every change at `url`; returns the function that ends it. Everyone on the
// page who asks for one address shares one request a second; it pauses while the page is hidden.
// `every` is how many seconds lie between two requests, 1 unless said; the first who asks decides.
export function subscribe(url, listen, { once = false, every = 1 } = {}) {
  let poller = pollers.get(url)
  if (!poller) {
    poller = new Poller(url, once, every ?? 1)
    pollers.set(url, poller)
  }
  poller.listeners.add(listen)
  if (poller.state.frame || poller.state.missed) listen(poller.state)
  poller.wake()
  return () => {
    poller.listeners.delete(listen)
    if (!poller.listeners.size) {
      poller.stop()
      pollers.delete(url)
    }
  }
}

class Poller {
  constructor(url, once, every) {
    this.url = url
    this.once = once
    this.every = every
    this.listeners = new Set()
    this.state = { frame: null, etag: "", missed: 0, skew: 0, status: 0, polls: 0, bytes: 0 }
    this.timer = 0
    this.busy = false
    this.onVisible = () => (document.hidden ? this.pause() : this.wake())
    document.addEventListener("visibilitychange", this.onVisible)
  }

  wake() {
    if (!this.timer && !this.busy && !document.hidden && !(this.once && this.state.frame)) this.poll()
  }

  pause() {
    clearTimeout(this.timer)
    this.timer = 0
  }

  stop() {
    this.pause()
    this.stopped = true
    document.removeEventListener("visibilitychange", this.onVisible)
  }

  async poll() {
    this.timer = 0
    this.busy = true
    await this.fetch()
    this.busy = false
    if (this.stopped) return
    for (const listen of this.listeners) listen(this.state)
    if (!document.hidden && !(this.once && this.state.frame)) this.timer = setTimeout(() => this.poll(), this.delay())
  }

  // A page that cannot be read is asked less often, up to every ten seconds.
  delay() {
    return Math.min(POLL_MS * Math.max(this.every, this.state.missed - MISSED + 1), 10 * POLL_MS)
  }

  async fetch() {
    const state = this.state
    try {
      const headers = state.etag ? { "If-None-Match": state.etag } : {}
      const answer = await fetch(this.url, { headers, cache: "no-store", credentials: "same-origin" })
      state.polls += 1
      state.status = answer.status
      const told = Number(answer.headers.get("Trimtab-Time"))
      if (told) state.skew = told - Date.now() / 1000
      if (answer.status === 200) {
        const body = await answer.arrayBuffer()
        state.bytes = body.byteLength
        state.frame = decode(body)
        state.etag = answer.headers.get("ETag") ?? ""
      } else if (answer.status !== 304) {
        throw new FrameError(`status ${answer.status}`)
      }
      state.missed = 0
    } catch (error) {
      state.missed += 1
      state.error = String(error.message ?? error)
    }
  }
}

// Seconds since the data in this state was made, by the server's clock; null when it does not say.
export function ageOf(state) {
  const at = state.frame?.header.at_s
  return at ? Math.max(0, Date.now() / 1000 + state.skew - at) : null
}

// True when the data is too old to be taken for the present: three frames missed, or the server says so.
export function isStale(state, live) {
  return state.missed >= MISSED || (live && Boolean(state.frame?.header.stale))
}
