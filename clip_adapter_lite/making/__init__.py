"""How what ships was made: the bundled banks, the reference results and the pocket CLIP. For
maintainers.
"""
