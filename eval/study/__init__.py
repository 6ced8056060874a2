"""The blind human study: pairs of pictures, compared by people who do not know the methods.

`importing` builds a study out of folders of pictures, `inviting` hands out personal links, `app` asks and keeps the
answers, `results` counts them; `database` is what they share. Nothing here needs torch, and only `app` and `server`
need the extra `study`.
"""
