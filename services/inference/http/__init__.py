"""The HTTP side: requests, answers and errors in OpenAI's shape, keys and limits, the audit log, the try-it page.

app               routes; every request passes them to `images`
bodies, schemas   reads JSON and forms; the fields and their limits
images            from a parsed request to encoded pictures, by the catalog and the engine
encoding          picture files that contain how they were made
streaming         server-sent events, and work that is cancelled when the client disconnects
errors            the one place where an error becomes an HTTP status
keys, idempotency, audit, request_metrics, documents, page
"""
