"""Near-lossless: fewer bits for a loss that is chosen and measured.

    settings      what to quantise to: SpQR, GPTQ and rounding are settings of one algorithm
    reference     that algorithm, slow and plain, in NumPy: the truth
    spqr          the same at full speed in torch (grid, factor and order are its parts)
    integers      the other method: entropy-coded integers, smaller for the same loss

    calibration   text to token sequences
    blocks, observe, capture, walk
                  a model's blocks by structure, their inputs, one block at a time
    lazy          ... of a model larger than memory
    stream        the job: quantise every block, each calibrated on the quantised ones before it
    store         finished matrices on disk, so that a killed job goes on

    sensitivity   what each matrix costs at each width, measured
    allocate      who gets how many bits
    target        a bound on the loss, kept by measuring
    sensitivity_map   the picture of a layer

The results, their sizes and the way back to weights are `tersor.codec.quantized`. Nothing is imported here:
`settings`, `reference` and `integers` need only NumPy, the rest needs torch.
"""
