// The run's whole course as one strip with the page's time cursor on it, and the buttons that move it: replay.
//
// The strip is CV over its floor, of the worst layer and of the median one. Playing moves the cursor in the browser; the
// address learns of it when it stops.

import { moment, windowAt } from "./moment.js"
import { css, grouped, line, text, veil } from "./paint.js"
import { axisOf, columnOf, drawCursor, drawMarks, placeNow, timed } from "./time_axis.js"

const HIGH = 46
const TOP = 5
const FOOT = 15
const TICK_MS = 200
// Steps a second.
const SPEEDS = [2, 10, 50]
const SHAPES = {
  back: "M7 2 L3 6 L7 10 M10 2 L6 6 L10 10",
  forward: "M3 2 L7 6 L3 10 M6 2 L10 6 L6 10",
  play: "M3 1.5 L10.5 6 L3 10.5 Z",
  pause: "M3 2 H5 V10 H3 Z M7.5 2 H9.5 V10 H7.5 Z",
}

export const timeline = {
  ...timed,
  ages: true,

  // The buttons stand in front of the strip, on a phone above it.
  room(view) {
    const controls = controlsOf(view)
    const wide = view.holder.clientWidth
    return wide < 620 ? wide : wide - controls.offsetWidth - 14
  },

  draw(view) {
    const context = view.begin(HIGH)
    say(view)
    if (!view.frame) {
      context.fillStyle = css(view.tokens.panel)
      context.fillRect(0, TOP, view.width, HIGH - TOP - FOOT)
      view.plan = null
      return
    }
    const { tokens, frame } = view
    const wide = view.width
    const plan = { left: 0, wide, top: TOP, bottom: HIGH - FOOT, titleWide: 0, axis: axisOf(frame, wide, frame.arrays.steps.values.length) }
    view.plan = plan
    drawWindow(context, view, plan)
    drawCourses(context, view, plan)
    line(context, 0, plan.bottom, wide, plan.bottom, tokens["strong-rule"])
    drawMarks(context, view, plan, null)
    const { values } = frame.arrays.steps
    text(context, `step ${grouped(frame.header.first_step ?? values[0])}`, 0, HIGH - 6, tokens.faint, { size: 10.5 })
    text(context, grouped(values[values.length - 1]), wide, HIGH - 6, tokens.faint, { align: "right", size: 10.5 })
    if (wide > 520) text(context, "CV ÷ floor over the run: worst layer, median layer", wide / 2, HIGH - 6, tokens.faint, { align: "center", size: 10.5 })
    if (view.stale) veil(context, tokens, 0, TOP, wide, plan.bottom - TOP, view.staleWords())
  },

  keys(view, event) {
    const by = { ArrowLeft: -1, ArrowRight: 1, PageDown: -100, PageUp: 100 }[event.key]
    if (by) stepBy(view, by * (event.shiftKey ? 10 : 1))
    else if (event.key === " ") toggle(view)
    else if (event.key === "Home") goTo(view, firstStep(view))
    else if (event.key === "End") goTo(view, null)
    else return false
    return true
  },

  pick: (view, place) => goTo(view, view.frame.arrays.steps.values[place.column]),

  stepped: (view) => say(view),

  end(view) {
    clearInterval(view.player)
    clearTimeout(view.naming)
  },

  label(view) {
    if (!view.frame) return "The run's course: no steps yet."
    const place = placeNow(view, null) ?? { column: view.frame.arrays.steps.values.length - 1 }
    const worst = view.frame.arrays.worst.values[place.column]
    const at = moment.step === null ? "live" : `step ${moment.step}`
    return `The run's course, ${at}: the worst layer is ${worst.toFixed(1)} times its floor. Arrows move by a step, space plays, End goes live.`
  },
}

function controlsOf(view) {
  if (view.controls) return view.controls
  const made = document.createElement("div")
  made.className = "tt-controls"
  const [back, play, forward] = [
    button("back", "one step back", () => stepBy(view, -1)),
    button("play", "play", () => toggle(view)),
    button("forward", "one step on", () => stepBy(view, 1)),
  ]
  view.speed = SPEEDS[1]
  const speed = document.createElement("button")
  speed.title = "steps a second"
  speed.onclick = () => {
    view.speed = SPEEDS[(SPEEDS.indexOf(view.speed) + 1) % SPEEDS.length]
    say(view)
  }
  const live = document.createElement("button")
  live.textContent = "Live"
  live.onclick = () => goTo(view, null)
  const told = document.createElement("output")
  made.append(back, play, forward, speed, live, told)
  Object.assign(view, { controls: made, playButton: play, speedButton: speed, liveButton: live, told })
  view.holder.insertBefore(made, view.canvas)
  return made
}

function button(shape, name, act) {
  const made = document.createElement("button")
  made.title = name
  made.setAttribute("aria-label", name)
  made.append(icon(shape))
  made.onclick = act
  return made
}

function icon(shape) {
  const space = "http://www.w3.org/2000/svg"
  const made = document.createElementNS(space, "svg")
  made.setAttribute("viewBox", "0 0 12 12")
  made.setAttribute("class", shape === "play" || shape === "pause" ? "full" : "")
  const path = document.createElementNS(space, "path")
  path.setAttribute("d", SHAPES[shape])
  made.append(path)
  return made
}

// The step that is shown, how old it is, and what the buttons do now.
function say(view) {
  if (!view.controls) return
  const { frame } = view
  const newest = newestStep(view)
  const playing = Boolean(view.player)
  if (view.playButton.dataset.shape !== String(playing)) {
    view.playButton.dataset.shape = String(playing)
    view.playButton.replaceChildren(icon(playing ? "pause" : "play"))
    view.playButton.title = playing ? "pause" : "play"
    view.playButton.setAttribute("aria-label", view.playButton.title)
  }
  view.speedButton.textContent = `${view.speed}/s`
  const live = moment.step === null
  view.liveButton.textContent = view.data.live === false ? "End" : "Live"
  view.liveButton.setAttribute("aria-pressed", String(live))
  const step = live ? newest : moment.step
  const column = frame && !live ? columnOf(frame.arrays.steps.values, step) : null
  const at = column === null ? "" : new Date(frame.arrays.at_s.values[column] * 1000).toISOString().slice(11, 19)
  const counted = countedStep(view)
  const words = `${at && ` ${at}`}${counted === null ? "" : ` (counts of step ${grouped(counted)})`}`
  view.told.replaceChildren(strong(step === null ? "–" : `step ${grouped(step)}`), document.createTextNode(words))
}

// The step whose counts are drawn where those of the shown one were thinned with age; null where they are its own.
function countedStep(view) {
  for (const other of view.everyone) {
    const { run, asked, step } = other.frame?.header ?? {}
    const mine = other.data?.follow === "step" && run === view.frame?.header.run
    if (mine && asked !== undefined && asked === moment.step && step !== asked) return step
  }
  return null
}

function strong(words) {
  const made = document.createElement("b")
  made.textContent = words
  return made
}

// The strip of a long run is made anew only when a column is full: a live picture beside it knows better.
function newestStep(view) {
  const known = [view.data.newest, view.frame?.arrays.steps.values.at(-1)]
  for (const other of view.everyone) {
    const { run, step } = other.frame?.header ?? {}
    if (other.data?.kind === "experts" && other.live && run === view.frame?.header.run) known.push(step)
  }
  const steps = known.filter(Number.isFinite)
  return steps.length ? Math.max(...steps) : null
}

const firstStep = (view) => (view.frame ? (view.frame.header.first_step ?? view.frame.arrays.steps.values[0]) : 0)

function goTo(view, step) {
  stop(view)
  view.show(step)
}

// One step at a time; past the newest one the page is live again. The address follows once the keys rest.
function stepBy(view, by) {
  stop(view)
  const newest = newestStep(view)
  if (newest === null) return
  const next = Math.max(firstStep(view), (moment.step ?? newest) + by)
  moment.pin(next >= newest && by > 0 ? null : Math.min(next, newest))
  clearTimeout(view.naming)
  view.naming = setTimeout(() => view.show(moment.step), 400)
}

function toggle(view) {
  if (view.player) {
    stop(view)
    view.show(moment.step)
    return
  }
  if (newestStep(view) === null) return
  if (moment.step === null || moment.step >= newestStep(view)) moment.pin(firstStep(view))
  clearTimeout(view.naming)
  let [owed, busy, mine] = [0, 0, moment.step]
  view.player = setInterval(() => {
    // Someone else has moved the cursor (a click, Escape, the browser's Back): it is no longer this replay's.
    if (moment.step === null || moment.step !== mine) return stop(view)
    const newest = newestStep(view)
    // The pictures set the pace: while one of them still waits for its frame the cursor waits too.
    if ([...view.everyone].some((other) => other.data.follow === "step" && other.loading) && busy++ < 10) return
    busy = 0
    owed += (view.speed * TICK_MS) / 1000
    const by = Math.floor(owed)
    owed -= by
    if (by) moment.pin((mine = Math.min(moment.step + by, newest)))
    if (moment.step >= newest) {
      stop(view)
      view.show(moment.step)
    }
  }, TICK_MS)
  say(view)
}

function stop(view) {
  clearInterval(view.player)
  clearTimeout(view.naming)
  view.player = 0
  say(view)
}

// The stretch of steps that the panels below show.
function drawWindow(context, view, plan) {
  const { steps } = view.data
  if (!steps) return
  const { values } = plan.axis.steps ? view.frame.arrays.steps : { values: [] }
  const newest = values.at(-1)
  if (newest === undefined) return
  const [from, to] = moment.step === null ? [newest - steps + 1, newest] : windowAt(moment.step, steps)
  if (from > newest || to < values[0]) return
  const first = columnOf(values, Math.max(from, values[0])) ?? 0
  const last = columnOf(values, Math.min(to, newest)) ?? values.length - 1
  const [x] = plan.axis.span(first)
  const [end, wide] = plan.axis.span(last)
  context.fillStyle = css(view.tokens.panel)
  context.fillRect(x, TOP, end + wide - x, plan.bottom - TOP)
}

function drawCourses(context, view, plan) {
  const { tokens, frame } = view
  const { worst, middle } = frame.arrays
  let most = 5
  for (const value of worst.values) if (value > most) most = value
  const [low, top] = [Math.log2(0.7), Math.log2(most)]
  const high = plan.bottom - TOP - 2
  const y = (value) => plan.bottom - 1 - high * ((Math.log2(Math.max(value, 0.7)) - low) / (top - low))
  line(context, 0, y(4), plan.wide, y(4), tokens.fault, { dash: [1.5, 3] })
  for (const [{ values }, color, width] of [[middle, tokens.off, 1], [worst, tokens.text, 1.2]]) {
    context.beginPath()
    let drawn = false
    for (let column = 0; column < plan.axis.count; column++) {
      if (plan.axis.breaksBefore(column)) drawn = false
      if (!Number.isFinite(values[column])) {
        drawn = false
        continue
      }
      const [x, wide] = plan.axis.span(column)
      drawn ? context.lineTo(x + wide / 2, y(values[column])) : context.moveTo(x + wide / 2, y(values[column]))
      drawn = true
    }
    context.lineWidth = width
    context.strokeStyle = css(color)
    context.stroke()
  }
}
