// y[token][row] = the sum of `partial` over the spans, in order, + bias. One thread per output.
#include "ptx.cuh"

extern "C" __global__ void __launch_bounds__(256)
combine(const float* __restrict__ partial,  // [spans][outputs], outputs = tokens * rows
        const u16* __restrict__ bias,       // [rows] bfloat16 or null
        u16* __restrict__ y, int rows, int outputs, int spans) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    previous_done();
    let_next_begin();
    if (i >= outputs) return;
    float total = 0;
#pragma unroll 4
    for (int span = 0; span < spans; span++) total += __ldg(partial + (long long)span * outputs + i);
    y[i] = to_bf16(total + (bias ? from_bf16(__ldg(bias + i % rows)) : 0.f));
}
