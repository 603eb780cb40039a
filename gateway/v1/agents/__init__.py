"""`POST /v1/agents/heroku`: a model and tools, in a loop until the model has its answer.

`endpoint` takes a request (`request`) and runs it (`run`): `lookup` finds its tools (`toolbox`),
`loop` says what happens next, `model` asks the model, `errands` runs tools in sessions, and
`frames` is what the client sees. Pure are request, toolbox, loop and frames.
"""
