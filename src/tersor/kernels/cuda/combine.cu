// y[token][row] = the sum of `partial` over the spans, in order, + bias. One thread per QUAD outputs side by side.
#include "ptx.cuh"

constexpr int THREADS = 128, QUAD = 4;

extern "C" __global__ void __launch_bounds__(THREADS)
combine(const float* partial,           // [spans][outputs], outputs = tokens * rows
        const u16* __restrict__ bias,   // [rows] bfloat16 or null
        u16* __restrict__ y, int rows, int outputs, int spans) {
    const int first = (blockIdx.x * THREADS + threadIdx.x) * QUAD;
    const bool aligned = rows % QUAD == 0;
    let_next_begin();  // a product may ask for its weights meanwhile
    previous_done();
    if (first >= outputs) return;
    float total[QUAD] = {};
    if (aligned) {
#pragma unroll 8
        for (int span = 0; span < spans; span++) {
            const float4 part = __ldcg((const float4*)(partial + (long long)span * outputs + first));
            total[0] += part.x, total[1] += part.y, total[2] += part.z, total[3] += part.w;
        }
    } else {
        for (int span = 0; span < spans; span++)
#pragma unroll
            for (int k = 0; k < QUAD; k++)
                if (first + k < outputs) total[k] += __ldcg(partial + (long long)span * outputs + first + k);
    }
    u16 sum[QUAD];
#pragma unroll
    for (int k = 0; k < QUAD; k++)
        sum[k] = to_bf16(total[k] + (bias && first + k < outputs ? from_bf16(__ldg(bias + (first + k) % rows)) : 0.f));
    if (aligned) {
        *(uint2*)(y + first) = make_uint2(sum[0] | (u32)sum[1] << 16, sum[2] | (u32)sum[3] << 16);
    } else {
#pragma unroll
        for (int k = 0; k < QUAD; k++)
            if (first + k < outputs) y[first + k] = sum[k];
    }
}
