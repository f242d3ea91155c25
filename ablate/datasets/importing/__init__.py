"""Exports of annotation tools, made into a data set's folder.

A module for each format reads an export into `Imported`; `matching` finds its image files, `cures` recognises what is
wrong with its points, `write` makes the folder. What this room offers is `importer.import_dataset`.
"""
