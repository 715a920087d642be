"""Which version answers a request.

    names            parses a request's ``model``
    catalog          leases a version to a request, and changes versions between requests
    aliases          watches where the registry's aliases point
    versions         prepares versions, keeps them while they are in use, drops them
    golden           checks a version's golden pictures before it is served
    canary           the rule by which a canary is promoted or withdrawn
    canary_traffic   counts and scores what both versions of a canary answer, and applies the rule
    metrics          Prometheus metrics by version

It knows the engine by the protocol `versions.VersionEngine` only, and imports neither `services.inference.painting` nor
`services.inference.http`.
"""
