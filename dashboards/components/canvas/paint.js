// Colours, scales, canvases and words: what every kind of picture shares. No kind of picture is known here.

const NAMES = [
  "bg", "panel", "raised", "rule", "strong-rule", "text", "muted", "faint", "link", "off", "ok", "ok-text", "ok-soft", "warn",
  "warn-text", "warn-soft", "on-warn", "fault", "fault-text", "fault-soft", "on-fault", "training", "idle", "load", "dead", "hatch",
  "scale-m2", "scale-m1", "scale-mh", "scale-0", "scale-ph", "scale-p1", "scale-p2", "seq-0", "seq-1", "seq-2", "seq-3",
]
export const SANS = "'IBM Plex Sans', 'Source Sans', sans-serif"
// log2(share x E): 10 % to either side of fair reads as flat.
const FLAT = Math.log2(1.1)
const STOPS = [-2, -1, -0.5, 0.5, 1, 2]

// The page's tokens as rgb triples, read through a probe so that light-dark() follows the page's colour scheme.
export function readTokens(root) {
  const probe = document.createElement("i")
  probe.style.display = "none"
  root.append(probe)
  const tokens = {}
  for (const name of NAMES) {
    probe.style.color = `var(--tt-${name}, #888)`
    tokens[name] = rgb(getComputedStyle(probe).color)
  }
  probe.remove()
  return tokens
}

function rgb(text) {
  const parts = text.match(/[\d.]+/g)?.map(Number) ?? [128, 128, 128]
  return text.startsWith("color(") ? parts.slice(0, 3).map((part) => Math.round(part * 255)) : parts.slice(0, 3)
}

export const css = (color, alpha = 1) => `rgba(${color[0]},${color[1]},${color[2]},${alpha})`

export function mix(from, to, share) {
  return from.map((part, index) => Math.round(part + (to[index] - part) * share))
}

// The colour of a load, given log2(share x E); clipped to a quarter and four times the fair share.
export function loadColor(tokens, value) {
  if (Math.abs(value) <= FLAT) return tokens["scale-0"]
  const ends = ["scale-m2", "scale-m1", "scale-mh", "scale-ph", "scale-p1", "scale-p2"].map((name) => tokens[name])
  const clipped = Math.max(-2, Math.min(2, value))
  if (clipped > -0.5 && clipped < 0) return mix(tokens["scale-0"], ends[2], 0.4 + (0.6 * (-clipped - FLAT)) / (0.5 - FLAT))
  if (clipped >= 0 && clipped < 0.5) return mix(tokens["scale-0"], ends[3], 0.4 + (0.6 * (clipped - FLAT)) / (0.5 - FLAT))
  const at = clipped < 0 ? (clipped < -1 ? 0 : 1) : clipped > 1 ? 4 : 3
  return mix(ends[at], ends[at + 1], (clipped - STOPS[at]) / (STOPS[at + 1] - STOPS[at]))
}

// A signed measure around zero on the same hues; `value` is already divided by its largest size.
export function signedColor(tokens, value) {
  if (!Number.isFinite(value) || Math.abs(value) < 0.02) return tokens["scale-0"]
  const far = value < 0 ? ["scale-mh", "scale-m1", "scale-m2"] : ["scale-ph", "scale-p1", "scale-p2"]
  return ramp([tokens["scale-0"], ...far.map((name) => tokens[name])], Math.min(1, Math.abs(value)))
}

// A measure from little to much; `share` from 0 to 1.
export function sequenceColor(tokens, share) {
  return ramp(["seq-0", "seq-1", "seq-2", "seq-3"].map((name) => tokens[name]), Math.max(0, Math.min(1, share)))
}

function ramp(stops, share) {
  const at = Math.min(stops.length - 2, Math.floor(share * (stops.length - 1)))
  return mix(stops[at], stops[at + 1], share * (stops.length - 1) - at)
}

// Size a canvas for this screen's pixels and return its context, in CSS pixels and cleared.
export function prepare(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1
  const [wide, high] = [Math.round(width * ratio), Math.round(height * ratio)]
  if (canvas.width !== wide || canvas.height !== high) {
    canvas.width = wide
    canvas.height = high
    canvas.style.width = `${width}px`
    canvas.style.height = `${height}px`
  }
  const context = canvas.getContext("2d")
  context.setTransform(ratio, 0, 0, ratio, 0, 0)
  context.clearRect(0, 0, width, height)
  context.imageSmoothingEnabled = false
  return context
}

export function text(context, words, x, y, color, { size = 11, weight = 400, align = "left", base = "middle" } = {}) {
  context.font = `${weight} ${size}px ${SANS}`
  context.fillStyle = css(color)
  context.textAlign = align
  context.textBaseline = base
  context.fillText(words, x, y)
}

export const widthOf = (context, words, size = 11, weight = 400) => {
  context.font = `${weight} ${size}px ${SANS}`
  return context.measureText(words).width
}

// 45 degree lines: there is no data here.
export function hatch(context, x, y, width, height, color, gap = 4) {
  if (width <= 0 || height <= 0) return
  context.save()
  context.beginPath()
  context.rect(x, y, width, height)
  context.clip()
  context.strokeStyle = css(color)
  context.lineWidth = 1
  context.beginPath()
  for (let at = x - height; at < x + width; at += gap) {
    context.moveTo(at, y + height)
    context.lineTo(at + height, y)
  }
  context.stroke()
  context.restore()
}

export function line(context, fromX, fromY, toX, toY, color, { dash = [], width = 1 } = {}) {
  context.beginPath()
  context.setLineDash(dash)
  context.lineWidth = width
  context.strokeStyle = css(color)
  context.moveTo(fromX, fromY)
  context.lineTo(toX, toY)
  context.stroke()
  context.setLineDash([])
}

export function box(context, x, y, width, height, color, stroke = 1) {
  context.lineWidth = stroke
  context.strokeStyle = css(color)
  context.strokeRect(x + stroke / 2, y + stroke / 2, width - stroke, height - stroke)
}

// Data that is old: veiled to 45 %, with what is known about its age over it.
export function veil(context, tokens, x, y, width, height, words) {
  context.fillStyle = css(tokens.bg, 0.55)
  context.fillRect(x, y, width, height)
  const wide = widthOf(context, words, 12.5, 500) + 24
  const [left, top] = [x + (width - wide) / 2, y + height / 2 - 14]
  context.fillStyle = css(tokens["warn-soft"])
  context.fillRect(left, top, wide, 28)
  box(context, left, top, wide, 28, tokens.warn)
  text(context, words, x + width / 2, y + height / 2 + 0.5, tokens["warn-text"], { size: 12.5, weight: 500, align: "center" })
}

// A length of time in its two largest units, as the rest of the page writes it (dashboards/words.py).
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–"
  if (seconds < 0) return "−" + duration(-seconds)
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`
  const whole = Math.round(seconds)
  if (whole < 60) return `${whole} s`
  if (whole < 3600) return `${Math.floor(whole / 60)} m ${two(whole % 60)} s`
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} m`
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`
}

export const grouped = (value) => Math.round(value).toLocaleString("en-US")

// A number with a true minus sign.
export const signed = (value, digits) => {
  if (!Number.isFinite(value)) return "–"
  if (Math.abs(value) < 0.5 * 10 ** -digits) return "0"
  return (value >= 0 ? "+" : "−") + Math.abs(value).toFixed(digits)
}

// A load in times its fair share; a dash where it is not known.
export const times = (value) => (Number.isFinite(value) ? `${value.toFixed(2)}×` : "–")

export const two = (number, count) => String(number).padStart(count > 100 ? 3 : 2, "0")
