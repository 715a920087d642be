"""The engine: one network that paints pictures of many versions, seeds and adapter scales in shared forwards.

    engine      accepts pictures, queues them, and runs one pipeline per picture in a thread
    pipelines   a copy of the diffusers pipeline for one picture at a time
    batching    joins the denoiser calls of all pictures into one forward
    weights     puts the weights of each picture's version and scale in place
    extras      adapters that requests add on top of a version

It imports neither `services.inference.models` nor `services.inference.http`: both call it.
"""
