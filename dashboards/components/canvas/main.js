// The one canvas component: finds the kind of picture, feeds it frames, and gives every kind the same manners.
//
// Each kind is {draw(view), at(view, x, y), words(view, place), move(view, place, key), pick(view, place), label(view)};
// all but draw are optional. Streamlit calls mount again whenever the data or the theme changes; a picture keeps its
// canvas, its cursor and its subscription through that.

import { ageOf, isStale, subscribe } from "./frames.js"
import { duration, grouped, prepare, readTokens } from "./paint.js"
import { badge } from "./badge.js"
import { controller } from "./controller.js"
import { experts } from "./experts.js"
import { fleet } from "./fleet.js"
import { histogram } from "./histogram.js"
import { layers } from "./layers.js"
import { raster } from "./raster.js"
import { ribbon } from "./ribbon.js"
import { sentence, tiles } from "./words.js"

const KINDS = { badge, controller, experts, fleet, histogram, layers, raster, ribbon, sentence, tiles }
const views = new WeakMap()

export function mount(component) {
  const root = component.parentElement
  let view = views.get(root)
  if (!view) {
    view = new View(root)
    views.set(root, view)
  }
  view.update(component)
}

export function unmount(root) {
  views.get(root)?.end()
  views.delete(root)
}

class View {
  constructor(root) {
    this.root = root
    this.holder = root.querySelector(".tt-canvas")
    this.canvas = document.createElement("canvas")
    this.canvas.tabIndex = 0
    this.canvas.setAttribute("role", "img")
    this.readout = document.createElement("div")
    this.readout.className = "tt-readout"
    this.holder.replaceChildren(this.canvas, this.readout)
    this.state = { frame: null, missed: 0, skew: 0 }
    this.cursor = null
    this.resizing = new ResizeObserver(() => this.paint())
    this.resizing.observe(this.holder)
    this.onResize = () => this.paint()
    window.addEventListener("resize", this.onResize)
    this.ticking = setInterval(() => this.tick(), 1000)
    this.canvas.onmousemove = (event) => this.hover(event)
    this.canvas.onmouseleave = () => this.moveTo(null)
    this.canvas.onclick = (event) => this.pick(this.placeOf(event))
    this.canvas.onkeydown = (event) => this.key(event)
    this.canvas.onblur = () => this.moveTo(null)
  }

  update(component) {
    this.component = component
    this.data = component.data ?? {}
    this.kind = KINDS[this.data.kind]
    this.holder.dataset.kind = this.data.kind
    this.readout.hidden = !this.kind.words
    this.canvas.hidden = false
    if (this.kind.at === undefined) this.canvas.tabIndex = -1
    this.tokens = readTokens(this.root)
    if (this.data.url !== this.url) {
      this.stopListening?.()
      this.stopListening = null
      this.url = this.data.url
      this.state = { frame: null, missed: 0, skew: 0 }
      if (this.url) this.stopListening = subscribe(this.url, (state) => this.hear(state), { once: Boolean(this.data.once) })
    }
    this.paint()
    document.fonts?.ready.then(() => this.paint())
  }

  end() {
    this.stopListening?.()
    this.resizing.disconnect()
    window.removeEventListener("resize", this.onResize)
    clearInterval(this.ticking)
  }

  hear(state) {
    this.state = state
    this.paint()
  }

  // Between frames only what tells an age has to be drawn again.
  tick() {
    if (!document.hidden && this.state.frame && (this.kind.ages || this.stale)) this.paint()
  }

  get frame() {
    return this.state.frame
  }

  get live() {
    return this.data.live !== false
  }

  get stale() {
    return isStale(this.state, this.live)
  }

  get age() {
    return ageOf(this.state)
  }

  // What stands over data that is old: "4 min 12 s without data, last step 36,602".
  staleWords() {
    const step = this.frame?.header.step
    const last = step === undefined || step === null ? "" : `, last step ${grouped(step)}`
    return `${this.age === null ? "" : duration(this.age) + " "}without data${last}`
  }

  paint() {
    if (!this.kind || this.painting) return
    this.painting = true
    requestAnimationFrame(() => {
      this.painting = false
      this.width = Math.floor(this.holder.clientWidth)
      if (this.width < 20) return
      this.kind.draw(this)
      this.canvas.setAttribute("aria-label", this.kind.label?.(this) ?? this.data.label ?? "")
      this.canvas.dataset.step = this.frame?.header.step ?? ""
      this.canvas.dataset.ready = String(Boolean(this.frame) || !this.url)
      this.canvas.dataset.stale = String(this.stale)
      this.say()
    })
  }

  // The context of this view's canvas at `height`, ready to be drawn on.
  begin(height) {
    this.height = height
    return prepare(this.canvas, this.width, height)
  }

  placeOf(event) {
    const edge = this.canvas.getBoundingClientRect()
    return this.frame ? (this.kind.at?.(this, event.clientX - edge.left, event.clientY - edge.top) ?? null) : null
  }

  hover(event) {
    const place = this.placeOf(event)
    this.canvas.style.cursor = place && this.kind.pick ? "pointer" : "default"
    this.moveTo(place)
  }

  moveTo(place) {
    if (JSON.stringify(place) === JSON.stringify(this.cursor)) return
    this.cursor = place
    this.paint()
  }

  key(event) {
    if (!this.frame || !this.kind.move) return
    if (event.key === "Enter" || event.key === " ") this.pick(this.cursor ?? this.kind.move(this, null, ""))
    else if (event.key === "Escape") this.kind.escape ? this.kind.escape(this) : this.moveTo(null)
    else if (event.key.startsWith("Arrow")) this.moveTo(this.kind.move(this, this.cursor, event.key.slice(5)))
    else return
    event.preventDefault()
  }

  pick(place) {
    if (place && this.kind.pick) this.kind.pick(this, place)
  }

  // Parts are {text, strong?}; set as text, never as markup.
  say() {
    if (!this.kind.words) return
    const parts = this.frame ? this.kind.words(this, this.cursor) : []
    this.readout.replaceChildren(
      ...parts.map(({ text, strong }) => {
        const part = document.createElement(strong ? "b" : "span")
        part.textContent = text
        return part
      }),
    )
  }
}
