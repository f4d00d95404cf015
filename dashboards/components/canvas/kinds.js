// Every kind of picture by its name.

import { badge } from "./badge.js"
import { controller } from "./controller.js"
import { curves } from "./curves.js"
import { difference } from "./difference.js"
import { expert } from "./expert.js"
import { experts } from "./experts.js"
import { fleet } from "./fleet.js"
import { histogram } from "./histogram.js"
import { history } from "./history.js"
import { layers } from "./layers.js"
import { phase } from "./phase.js"
import { ranks } from "./ranks.js"
import { raster } from "./raster.js"
import { ribbon } from "./ribbon.js"
import { saving } from "./saving.js"
import { swings } from "./swings.js"
import { timeline } from "./timeline.js"
import { sentence, tiles } from "./words.js"

export const KINDS = {
  badge, controller, curves, difference, expert, experts, fleet, histogram, history, layers, phase, ranks, raster, ribbon,
  saving, sentence, swings, tiles, timeline,
}
