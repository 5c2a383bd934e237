"""Who is who: certificate authorities, the files that hold them, and what may be done with them."""
