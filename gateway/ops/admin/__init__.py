"""The operators' API below `/admin/v1`, and the console's log-in.

`table` has the operations, `shapes` what they take and answer; routes and the OpenAPI document are
made of both. `guard` lets operators in.
"""
