// y[token][row] = the sums in `partial`, added up in order, + bias. One thread per FEW outputs side by side.
//
// What it has been given is spans, to be added up by quads first (finish.cuh), or quads.
#include "ptx.cuh"

constexpr int THREADS = 128, FEW = 4;

extern "C" __global__ void __launch_bounds__(THREADS)
combine(const float* partial,           // [sums][outputs], outputs = tokens * rows
        const u16* __restrict__ bias,   // [rows] bfloat16 or null
        u16* __restrict__ y, int rows, int outputs, int sums, int quads) {
    const int first = (blockIdx.x * THREADS + threadIdx.x) * FEW;
    const bool aligned = rows % FEW == 0;
    let_next_begin();  // a product may ask for its weights meanwhile
    previous_done();
    if (first >= outputs) return;
    float total[FEW] = {}, of_quad[FEW] = {};
    const auto add = [&](int sum, const float (&part)[FEW]) {
        const bool whole = quads || sum % QUAD_SPANS == QUAD_SPANS - 1 || sum + 1 == sums;
#pragma unroll
        for (int k = 0; k < FEW; k++) {
            of_quad[k] += part[k];
            if (whole) total[k] += of_quad[k], of_quad[k] = 0;
        }
    };
    if (aligned) {
#pragma unroll 8
        for (int sum = 0; sum < sums; sum++) {
            const float4 part = __ldcg((const float4*)(partial + (long long)sum * outputs + first));
            add(sum, {part.x, part.y, part.z, part.w});
        }
    } else {
        for (int sum = 0; sum < sums; sum++) {
            float part[FEW] = {};
#pragma unroll
            for (int k = 0; k < FEW; k++)
                if (first + k < outputs) part[k] = __ldcg(partial + (long long)sum * outputs + first + k);
            add(sum, part);
        }
    }
    u16 of[FEW];
#pragma unroll
    for (int k = 0; k < FEW; k++)
        of[k] = to_bf16(total[k] + (bias && first + k < outputs ? from_bf16(__ldg(bias + (first + k) % rows)) : 0.f));
    if (aligned) {
        *(uint2*)(y + first) = make_uint2(of[0] | (u32)of[1] << 16, of[2] | (u32)of[3] << 16);
    } else {
#pragma unroll
        for (int k = 0; k < FEW; k++)
            if (first + k < outputs) y[first + k] = of[k];
    }
}
