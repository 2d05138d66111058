// The decoder of the layout that a text is compiled for: LAYOUT = 0 `fast` (window/layout.py), 1 `spqr` (spqr/layout.py).
#pragma once
#if LAYOUT == 0
#include "window_stage.cuh"
#else
#include "spqr_stage.cuh"
#endif

// Columns are counted in halves of a stage, because a row may end in the middle of one.
constexpr int HALF_COLS = STAGE_COLS / 2, HALF_BYTES = STAGE_BYTES / 2, SEGMENT_HALVES = SEGMENT_COLS / HALF_COLS;
constexpr int SEGMENT_STAGES = SEGMENT_HALVES / 2;
