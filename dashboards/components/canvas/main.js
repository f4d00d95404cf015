// The one canvas component: finds the kind of picture, feeds it frames, and gives every kind the same manners.
//
// Each kind is {draw(view), over(view, context), at(view, x, y), words(view, place), move(view, place, key), pick(view,
// place), label(view)}; all but draw are optional. A kind that is `timed` has columns with steps and shares the page's
// time cursor. Streamlit calls mount again whenever the data or the theme changes; a picture keeps its canvas, its
// cursor and its subscription through that.

import { KINDS } from "./kinds.js"
import { ageOf, isStale, subscribe } from "./frames.js"
import { addressOf, moment } from "./moment.js"
import { duration, grouped, prepare, readTokens } from "./paint.js"

const views = new WeakMap()
const NOTHING = { frame: null, missed: 0, skew: 0 }
const shown = new Set()

export function mount(component) {
  const root = component.parentElement
  let view = views.get(root)
  if (!view) {
    view = new View(root)
    views.set(root, view)
    shown.add(view)
  }
  view.update(component)
}

export function unmount(root) {
  const view = views.get(root)
  view?.end()
  shown.delete(view)
  views.delete(root)
}

class View {
  constructor(root) {
    this.root = root
    this.holder = root.querySelector(".tt-canvas")
    this.canvas = document.createElement("canvas")
    this.canvas.tabIndex = 0
    this.canvas.setAttribute("role", "img")
    this.above = document.createElement("canvas")
    this.above.className = "tt-above"
    this.above.setAttribute("aria-hidden", "true")
    this.readout = document.createElement("div")
    this.readout.className = "tt-readout"
    this.holder.replaceChildren(this.canvas, this.above, this.readout)
    this.state = this.otherState = NOTHING
    this.cursor = null
    this.resizing = new ResizeObserver(() => this.paint())
    this.resizing.observe(this.holder)
    this.onResize = () => this.paint()
    window.addEventListener("resize", this.onResize)
    this.ticking = setInterval(() => this.tick(), 1000)
    this.forget = moment.listen((change) => this.onMoment(change))
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
    this.readout.hidden = !this.kind.words && !this.kind.dom
    this.canvas.hidden = this.above.hidden = false
    if (this.kind.at === undefined) this.canvas.tabIndex = -1
    this.tokens = readTokens(this.root)
    if (this.data.cursorOf) moment.of(this.data.cursorOf)
    if (this.data.step !== undefined) moment.told(this.data.step)
    this.aim()
    this.paint()
    document.fonts?.ready.then(() => this.paint())
  }

  end() {
    this.kind.end?.(this)
    if (this.kind.timed && this.cursor) moment.hover(null)
    this.stopListening?.()
    this.stopOther?.()
    this.forget()
    this.resizing.disconnect()
    window.removeEventListener("resize", this.onResize)
    clearInterval(this.ticking)
  }

  onMoment(change) {
    if (!this.kind) return
    if (change === "step") {
      this.aim()
      this.paint()
      this.kind.stepped?.(this)
    } else if (this.kind.timed) this.paintAbove()
  }

  // Ask for what this moment shows. While the frame of one step is under way the next one waits for it: who drags the
  // cursor asks for what can be drawn, not for every step on the way.
  aim() {
    const { data } = this
    const at = data.follow ? moment.step : null
    const address = addressOf(data, at)
    if (this.loading && at !== null && address) this.next = address
    else this.listenTo(address)
    const other = data.other ? addressOf({ ...data, url: data.other }, at) : undefined
    if (other === this.otherAddress) return
    this.stopOther?.()
    this.otherAddress = other
    this.otherState = NOTHING
    if (other) this.stopOther = subscribe(other, (state) => this.hearOther(state), { ...this.manner, ...data.otherManner })
  }

  // What shows the past is asked for once. A whole run has one address, live and pinned, which goes on being asked.
  get manner() {
    const { data } = this
    const past = moment.step !== null && (data.follow === "step" || (data.follow === "window" && data.steps))
    return { once: Boolean(data.once || past), every: data.every }
  }

  listenTo(address) {
    this.next = null
    if (address === this.address) return
    this.stopListening?.()
    this.stopListening = null
    this.address = address
    if (!address) this.state = NOTHING
    this.loading = Boolean(address)
    if (address) this.stopListening = subscribe(address, (state) => this.hear(state), this.manner)
  }

  // What was drawn before stays until there is something newer to draw.
  hear(state) {
    this.loading = false
    this.missing = Boolean(state.missed && !state.frame)
    this.state = state.frame || !this.state.frame ? state : { ...state, frame: this.state.frame }
    if (this.next) this.listenTo(this.next)
    this.paint()
  }

  hearOther(state) {
    this.otherState = state
    this.paint()
  }

  // Between frames only what tells an age has to be drawn again.
  tick() {
    if (!document.hidden && this.state.frame && (this.kind.ages || this.stale)) this.paint()
  }

  // Every picture of the page, in no order.
  get everyone() {
    return shown
  }

  get frame() {
    return this.state.frame
  }

  get other() {
    return this.otherState.frame
  }

  // True while the page follows a run that goes on.
  get live() {
    return this.data.live !== false && !(this.data.follow && moment.step !== null)
  }

  get stale() {
    return (this.missing && Boolean(this.frame)) || isStale(this.state, this.live)
  }

  get age() {
    return ageOf(this.state)
  }

  // What stands over data that is old: "4 min 12 s without data, last step 36,602".
  staleWords() {
    const step = this.frame?.header.step
    if (this.missing && this.data.follow && moment.step !== null) return `step ${grouped(moment.step)} is not stored`
    const last = step === undefined || step === null ? "" : `, last step ${grouped(step)}`
    return `${this.age === null ? "" : duration(this.age) + " "}without data${last}`
  }

  paint() {
    if (!this.kind || this.painting) return
    this.painting = true
    requestAnimationFrame(() => {
      this.painting = false
      this.width = Math.floor(this.kind.room?.(this) ?? this.holder.clientWidth)
      if (this.width < 20) return
      this.kind.draw(this)
      this.canvas.setAttribute("aria-label", this.kind.label?.(this) ?? this.data.label ?? "")
      this.canvas.dataset.step = this.frame?.header.step ?? ""
      const waits = this.loading || (this.otherAddress && !this.other && !this.otherState.missed)
      this.canvas.dataset.ready = String(!waits && (Boolean(this.frame) || !this.address))
      this.canvas.dataset.stale = String(this.stale)
      this.drawAbove()
    })
  }

  // The cursor and what is pointed at lie above the picture: moving them draws nothing else again.
  paintAbove() {
    if (!this.kind || this.painting || this.paintingAbove) return
    this.paintingAbove = true
    requestAnimationFrame(() => {
      this.paintingAbove = false
      if (this.width >= 20) this.drawAbove()
    })
  }

  drawAbove() {
    if (this.kind.over && this.height) {
      const context = prepare(this.above, this.width, this.height)
      if (this.frame) this.kind.over(this, context)
    } else this.above.hidden = true
    this.canvas.dataset.cursor = this.kind.timed ? (moment.hovered ?? "") : ""
    this.say()
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
    if (this.kind.timed) moment.hover(place ? (place.step ?? this.frame.arrays.steps.values[place.column]) : null)
    this.kind.over ? this.paintAbove() : this.paint()
  }

  key(event) {
    if (!this.frame || !this.kind.move || event.ctrlKey || event.metaKey || event.altKey) return
    if (this.kind.keys?.(this, event)) event.preventDefault()
    else if (event.key === "Enter" || event.key === " ") this.pick(this.cursor ?? this.kind.move(this, null, ""))
    else if (event.key === "Escape") this.escape()
    else if (event.key.startsWith("Arrow")) this.moveTo(this.kind.move(this, this.cursor, event.key.slice(5)))
    else return
    event.preventDefault()
  }

  // Escape takes back what is pointed at; on a time axis, then also the step that is shown.
  escape() {
    if (this.kind.escape) this.kind.escape(this)
    else if (this.kind.timed && !this.cursor && moment.step !== null) this.show(null)
    else this.moveTo(null)
  }

  // Show this step (null: the newest) in every picture at once, and have the address name it.
  show(step, more = {}) {
    moment.show(step)
    this.component.setTriggerValue("pick", { ...more, step })
  }

  pick(place) {
    if (place && this.kind.pick) this.kind.pick(this, place)
  }

  // Parts are {text, strong?}; set as text, never as markup.
  say() {
    if (!this.kind.words || this.canvas.hidden) return
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
