"""Who is who: certificates, secrets, and what they prove."""
