"""Label formats of other programs: files that hold the outlines of objects for one photograph or for many.

A reader gives the shapes of each photograph; `presenting` makes a `Dataset` of them, so that every verb reads it as it
reads masks. Writers and `maskwright convert` go the other way.
"""
