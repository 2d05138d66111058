// The decoder of the layout that a text is compiled for: LAYOUT = 0 `fast` (window/layout.py), 1 `spqr` (spqr/layout.py).
#pragma once
#if LAYOUT == 0
#include "window_stage.cuh"
#else
#include "spqr_stage.cuh"
#endif
