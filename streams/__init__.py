"""Task streams: source -> scenario -> plan -> partition -> manifest. Who sees which sample, and when.

    stream.build(name, parameters, root)    decode the source once, deal its samples, write the manifest
    stream.open_stream(name, root)          the built stream, checked against its digest

Nothing here imports torch, Prefect, MLflow or DVC.
"""
