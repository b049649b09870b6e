"""The life of a batch, from its input file to its output and error files.

``storage`` keeps file bytes, ``expand`` turns an input file into lines (each checked by ``request_line``),
``feeder`` hands lines to the store in fair ``shares``, ``planned_feeder`` by the plan that ``planning`` makes of
``grouping``'s groups, within the batch's ``cap``; ``loss`` notices when the store lost them, ``assemble``
writes the results, ``service`` runs all of it beside the recorder. ``wake`` and ``window`` are for the gateway.
"""
