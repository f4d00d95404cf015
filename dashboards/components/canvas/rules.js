// What the alarms name in a frame's window, and the thresholds in force: both come with the frame, none is written here.

const LEVELS = ["ok", "warn", "fault"]

// ok, warn or fault of a layer by one array of levels: level (the gravest of all), uneven, swinging, skipping, skewed.
export const levelIn = (frame, name, layer) => LEVELS[frame.arrays[name]?.values[layer] ?? 0]

export const thresholdsOf = (frame, rule) => frame.header.rules[rule]

// The two lines of a distance in floors, the graver one first: [value, colour, ink].
export function floorLines(frame, tokens) {
  const { cv_floor: warn, worse_cv_floor: fault } = thresholdsOf(frame, "expert-imbalance")
  return [[fault, tokens.fault, tokens["fault-text"]], [warn, tokens.warn, tokens["warn-text"]]]
}
